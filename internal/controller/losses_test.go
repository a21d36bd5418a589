package controller

import (
	"errors"
	"fmt"
	"testing"

	"github.com/skerry-dev/skerry"
)

// TestLossesNobodyAsksFor has more sessions be lost than are kept, and nobody
// call them again: those that are lost later are told all the same.
func TestLossesNobodyAsksFor(t *testing.T) {
	var l losses
	stopped := skerry.Errorf(skerry.CodeSandboxStopped, "stopped")
	for i := range maxLosses + 1 {
		l.add(fmt.Sprint(i))
		l.add(fmt.Sprint(i)) // a stop that is repeated
	}
	if err := l.tell("0", stopped); !errors.Is(err, stopped) {
		t.Errorf("the oldest is told: %v", err)
	}
	for _, id := range []string{"1", fmt.Sprint(maxLosses)} {
		if err := l.tell(id, stopped); skerry.CodeOf(err) != skerry.CodeConflict {
			t.Errorf("loss %s is not told: %v", id, err)
		}
		if err := l.tell(id, stopped); !errors.Is(err, stopped) {
			t.Errorf("loss %s is told twice: %v", id, err)
		}
	}
	if got := len(l.untold); got != maxLosses-2 {
		t.Errorf("%d losses are kept", got)
	}
}
