//go:build gvisor_patched

package e2e

import (
	"slices"
	"testing"

	"gvisor.dev/gvisor/pkg/abi/linux"
	"gvisor.dev/gvisor/pkg/bpf"
	"gvisor.dev/gvisor/pkg/seccomp"
	"gvisor.dev/gvisor/pkg/sentry/platform"
	_ "gvisor.dev/gvisor/pkg/sentry/platform/systrap" // registers itself
	"gvisor.dev/gvisor/runsc/boot/filter"
	filterconfig "gvisor.dev/gvisor/runsc/boot/filter/config"
)

// TestSeccompIsPrecompiled: the program that sentries load is the one that they would
// compile, whatever their PID. It is one of these tests because they are built like the
// server: with the race detector a sentry has other rules.
func TestSeccompIsPrecompiled(t *testing.T) {
	systrap, err := platform.Lookup("systrap")
	if err != nil {
		t.Fatal(err)
	}
	for _, info := range systrap.PrecompiledSeccompInfo() {
		opt := filterconfig.Options{Platform: info, ControllerFD: 1234}
		ready, ok := filter.GetPrecompiled(opt.ConfigKey())
		if !ok {
			t.Fatalf("there is no program for %s", opt.ConfigKey())
		}
		have, err := ready.RenderInstructions(opt.Vars())
		if err != nil {
			t.Fatal(err)
		}
		rules, deny := filterconfig.Rules(opt)
		compiled := &seccomp.Program{
			RuleSets: []seccomp.RuleSet{{Rules: deny}, {Rules: rules, Action: seccomp.Allow}},
			Options:  filterconfig.SeccompOptions(opt),
		}
		want, _, err := compiled.Build()
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(bpf.ToBytecode(have), bpf.ToBytecode(want)) {
			t.Errorf("the programs differ: %d and %d instructions", len(have), len(want))
		}
		if last := have[len(have)-1].K; last != uint32(linux.SECCOMP_RET_KILL_PROCESS) {
			t.Errorf("what no rule allows ends in %#x", last)
		}
	}
}
