package clienttest

import (
	"os"
	"os/exec"
)

func setGroup(*exec.Cmd) {}

func signalGroup(p *os.Process, _ int) {
	if p != nil {
		p.Kill()
	}
}

func signalOf(*os.ProcessState) int { return 9 }
