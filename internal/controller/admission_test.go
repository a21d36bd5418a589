package controller

import (
	"strings"
	"testing"

	"github.com/skerry-dev/skerry"
)

func TestAdmission(t *testing.T) {
	for what, limit := range map[string]func(*Config){
		"vCPUs":  func(c *Config) { c.TotalVCPUs = 5 },
		"memory": func(c *Config) { c.TotalMemoryMB = 5 * skerry.MemoryPerVCPU },
	} {
		l := newLab(t, limit)
		one := l.create("one")
		l.create("two")
		_, err := l.CreateSandbox(t.Context(), scope, skerry.CreateParams{Name: "three"})
		wantCode(t, "more "+what+" than there are", err, skerry.CodeUnavailable)
		if err == nil || !strings.Contains(err.Error(), "no room") {
			t.Errorf("the error does not say that there is no room: %v", err)
		}
		small := l.createWith(skerry.CreateParams{Name: "small", VCPUs: 1})
		// What runs is adopted whatever the limits are.
		l.conf.TotalVCPUs, l.conf.TotalMemoryMB = 1, skerry.MemoryPerVCPU
		l.restart()
		for _, run := range []*skerry.Run{one, small} {
			l.sh(run.Session.ID, "true")
			l.stop(run.Session.ID)
		}
		_, err = l.GetSandbox(t.Context(), scope, "small", true)
		wantCode(t, "a resume without room", err, skerry.CodeUnavailable)
		l.stop(l.resume("two").Session.ID)
		l.resume("small")
	}
}

func TestSandboxLargerThanTheMachine(t *testing.T) {
	l := newLab(t, func(c *Config) { c.MaxMemoryMB = 4 * skerry.MemoryPerVCPU })
	_, err := l.CreateSandbox(t.Context(), scope, skerry.CreateParams{Name: "one", VCPUs: 8})
	wantCode(t, "more memory than the machine has", err, skerry.CodeBadRequest)
	l.createWith(skerry.CreateParams{Name: "one", VCPUs: 4})
}
