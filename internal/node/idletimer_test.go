package node

import (
	"testing"
	"time"

	"github.com/skerry-dev/skerry/internal/driver"
)

func TestNextTimer(t *testing.T) {
	timer := func(id int64, left time.Duration) driver.Timer { return driver.Timer{ID: id, Left: left} }
	for name, test := range map[string]struct {
		before, now []driver.Timer
		left        time.Duration
		soon        bool
	}{
		"none":               {},
		"one far away":       {now: []driver.Timer{timer(1, time.Minute)}, left: time.Minute},
		"the next of two":    {now: []driver.Timer{timer(1, time.Minute), timer(2, time.Hour)}, left: time.Minute},
		"a poll":             {before: []driver.Timer{timer(1, time.Second)}, now: []driver.Timer{timer(2, time.Second)}},
		"a poll and another": {before: []driver.Timer{timer(1, time.Second)}, now: []driver.Timer{timer(2, time.Second), timer(3, time.Hour)}, left: time.Hour},
		"soon, and no poll":  {before: []driver.Timer{timer(1, 8*time.Second)}, now: []driver.Timer{timer(1, 3*time.Second)}, soon: true},
		"overdue":            {before: []driver.Timer{timer(1, 0)}, now: []driver.Timer{timer(1, 0)}, soon: true},
	} {
		if left, soon := nextTimer(test.before, test.now); left != test.left || soon != test.soon {
			t.Errorf("%s: %s, %v, want %s, %v", name, left, soon, test.left, test.soon)
		}
	}
}
