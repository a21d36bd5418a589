package api

import (
	"encoding/json"
	"strings"
	"syscall"

	"github.com/skerry-dev/skerry"
)

// signalNumber is a signal in a request: a number, as the public clients send, or a
// name.
type signalNumber int

// linuxSignals are the signals of Linux by name. The sandbox runs Linux, whatever
// system this code is compiled for.
var linuxSignals = map[string]signalNumber{
	"HUP": 1, "INT": 2, "QUIT": 3, "ILL": 4, "TRAP": 5, "ABRT": 6, "BUS": 7, "FPE": 8, "KILL": 9,
	"USR1": 10, "SEGV": 11, "USR2": 12, "PIPE": 13, "ALRM": 14, "TERM": 15, "STKFLT": 16, "CHLD": 17,
	"CONT": 18, "STOP": 19, "TSTP": 20, "TTIN": 21, "TTOU": 22, "URG": 23, "XCPU": 24, "XFSZ": 25,
	"VTALRM": 26, "PROF": 27, "WINCH": 28, "IO": 29, "PWR": 30, "SYS": 31,
}

func (s *signalNumber) bindTree(path string, v any) error {
	switch v := v.(type) {
	case json.Number:
		n, err := integer(path, v)
		if err != nil {
			return err
		}
		if err := skerry.ValidateSignal(path, n); err != nil {
			return err
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

// orTerminate returns the signal, SIGTERM if none is given.
func (s signalNumber) orTerminate() int {
	if s == 0 {
		return int(syscall.SIGTERM)
	}
	return int(s)
}
