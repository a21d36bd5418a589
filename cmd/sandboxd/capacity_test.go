package main

import "testing"

func TestSandboxMemory(t *testing.T) {
	for _, c := range []struct {
		flag          int
		machine, want int64
	}{
		{0, 100 << 30, 90 << 30},
		{0, 4 << 30, 3 << 30},
		{0, 1 << 30, 1 << 29},
		{8, 100 << 30, 8 << 30},
		{200, 100 << 30, 100 << 30},
	} {
		o := capacityOptions{memoryGB: c.flag}
		if got := o.sandboxMemory(c.machine); got != c.want {
			t.Errorf("of %d bytes, with %d GiB asked for, sandboxes get %d, want %d", c.machine, c.flag, got, c.want)
		}
	}
	machine, err := thisMachine()
	if err != nil {
		t.Fatal(err)
	}
	o := capacityOptions{overCPU: 2, overMemory: 1}
	if vcpus, memory, each := o.promised(machine); vcpus < 2 || memory < 1 || each < memory {
		t.Errorf("promised() = %d, %d, %d", vcpus, memory, each)
	}
	small, none := capacityOptions{overCPU: 1e-6, overMemory: 1e-9}, capacityOptions{}
	if vcpus, memory, _ := small.promised(machine); vcpus != 1 || memory != 1 {
		t.Errorf("of a small part promised() = %d, %d", vcpus, memory)
	}
	if vcpus, memory, _ := none.promised(machine); vcpus != 0 || memory != 0 {
		t.Errorf("without a bound promised() = %d, %d", vcpus, memory)
	}
}
