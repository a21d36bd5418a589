package node

import (
	"slices"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/driver"
	"github.com/skerry-dev/skerry/internal/nodeapi"
)

// cannot is the error of what the driver is not capable of.
func (n *Node) cannot(what string) error {
	return skerry.Errorf(skerry.CodeNotImplemented, "this server cannot %s: its driver %q is not capable of that", what, n.cfg.Driver.Name())
}

// canStart refuses a session that the driver cannot start.
func (n *Node) canStart(spec nodeapi.SessionSpec) error {
	switch can := n.cfg.Driver.Capabilities(); {
	case spec.ForkOf != "" && !can.Fork:
		return n.cannot("fork running sandboxes")
	case spec.ForkOf == "" && spec.Memory && !can.Memory:
		return n.cannot("start a sandbox from a memory snapshot")
	case len(spec.Mounts) > 0 && !slices.Contains(can.Volumes, driver.Tree):
		return n.cannot("mount drives")
	}
	return nil
}

// canSave refuses a save that the driver cannot make.
func (n *Node) canSave(how nodeapi.Saving) error {
	switch can := n.cfg.Driver.Capabilities(); {
	case how.Memory && !can.Memory:
		return n.cannot("save the memory of sandboxes")
	case how.Hold && !can.Pause:
		return n.cannot("pause sandboxes")
	}
	return nil
}
