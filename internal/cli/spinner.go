package cli

import (
	"fmt"
	"time"
)

// spinnerDelay keeps the spinner from flashing up for what is done at once.
const spinnerDelay = 150 * time.Millisecond

// spin shows that something is being done until the returned function is
// called, which leaves no trace of it. It shows nothing where nobody looks.
func (a *app) spin(text string, silent bool) (stop func()) {
	if silent || !a.ErrTTY {
		return func() {}
	}
	quit, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		a.animate(text, quit)
	}()
	stopped := false
	return func() {
		if !stopped {
			stopped = true
			close(quit)
			<-done
		}
	}
}

func (a *app) animate(text string, quit <-chan struct{}) {
	tick := time.NewTicker(spinnerDelay)
	defer tick.Stop()
	frames := []rune("⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏")
	begin := time.Now()
	for i := 0; ; i++ {
		select {
		case <-quit:
			if i > 0 {
				fmt.Fprint(a.Err, "\r\x1b[K")
			}
			return
		case <-tick.C:
			since := ""
			if d := time.Since(begin); d >= time.Second { // long enough to wonder whether it goes on
				since = a.err.dim(" " + d.Truncate(time.Second).String())
			}
			fmt.Fprintf(a.Err, "\r%s %s%s\x1b[K", a.err.cyan(string(frames[i%len(frames)])), text, since)
			tick.Reset(80 * time.Millisecond)
		}
	}
}
