package gvisor

import "slices"

// ownMemory replaces, in the arguments of a sentry, the host's memory by the
// sandbox's. The sentry derives from it how much a tmpfs holds whose mount does
// not say: half of the memory and a file for every 8 KiB, as on Linux. runsc has
// no flag of its own for that.
func ownMemory(args []string) []string {
	value := func(flag string) int {
		if i := slices.Index(args, flag); i >= 0 && i+1 < len(args) {
			return i + 1
		}
		return -1
	}
	host, sandbox := value("--total-host-memory"), value("--total-memory")
	if host < 0 || sandbox < 0 {
		return args
	}
	args = slices.Clone(args)
	args[host] = args[sandbox]
	return args
}
