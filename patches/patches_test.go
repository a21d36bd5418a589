package patches_test

import (
	"testing"

	"github.com/skerry-dev/skerry/patches"
)

func TestGVisor(t *testing.T) {
	all := patches.GVisor()
	if len(all) == 0 {
		t.Fatal("there are no patches")
	}
	for _, p := range all {
		if p.Without == "" {
			t.Errorf("%s does not say what is weaker without it", p.Name)
		}
	}
	if v := patches.GVisorVersion(); len(v) != 12 {
		t.Errorf("GVisorVersion() = %q", v)
	}
}
