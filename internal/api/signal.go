package api

import (
	"encoding/json"
	"strings"
	"syscall"

	"github.com/skerry-dev/skerry"
)

// signalNumber is a Linux signal that a client names by number, as the public
// clients do, or by name.
type signalNumber int

// linuxSignals are the signals by name. They are Linux's numbers whatever this
// is compiled for, since the sandbox is Linux.
var linuxSignals = map[string]signalNumber{
	"HUP": 1, "INT": 2, "QUIT": 3, "ILL": 4, "TRAP": 5, "ABRT": 6, "BUS": 7, "FPE": 8, "KILL": 9,
	"USR1": 10, "SEGV": 11, "USR2": 12, "PIPE": 13, "ALRM": 14, "TERM": 15, "STKFLT": 16, "CHLD": 17,
	"CONT": 18, "STOP": 19, "TSTP": 20, "TTIN": 21, "TTOU": 22, "URG": 23, "XCPU": 24, "XFSZ": 25,
	"VTALRM": 26, "PROF": 27, "WINCH": 28, "IO": 29, "PWR": 30, "SYS": 31,
}

// lastSignal is SIGRTMAX of Linux.
const lastSignal = 64

func (s *signalNumber) bindTree(path string, v any) error {
	switch v := v.(type) {
	case json.Number:
		n, err := integer(path, v)
		if err != nil {
			return err
		}
		if n < 1 || n > lastSignal {
			return skerry.Invalid(path, "must be a signal from 1 to %d, not %d", lastSignal, n)
		}
		*s = signalNumber(n)
		return nil
	case string:
		n, ok := linuxSignals[strings.TrimPrefix(strings.ToUpper(v), "SIG")]
		if !ok {
			return skerry.Invalid(path, "no signal is named %q", shorten(v))
		}
		*s = n
		return nil
	}
	return wrongType(path, "a signal's number or name", v)
}

// orTerminate is the signal, SIGTERM when none was named.
func (s signalNumber) orTerminate() int {
	if s == 0 {
		return int(syscall.SIGTERM)
	}
	return int(s)
}
