package gvisor

import (
	"math/rand/v2"
	"sync"
)

// Each machine's sentry runs as a user of the host that nothing else runs as, so
// that no two sentries, and no daemon of the host, may signal or inspect each
// other or share what the kernel bounds per user. The numbers need no names in
// /etc/passwd. They are above those that systemd gives to containers, and below
// the last that fit in 31 bits. Other servers on the host choose from the same
// numbers at random.
const (
	firstUser = 1_900_000_000
	userCount = 1 << 27

	// nobody is the user of sentries that were started without the patch that
	// lets the driver choose.
	nobody = 65534
)

// users are the host's users that this driver's sentries run as.
type users struct {
	mu    sync.Mutex
	taken map[int]bool
}

// take returns one that no other machine has; 0, which stands for nobody, if the
// program is built without the patch.
func (u *users) take() int {
	if !Patched {
		return 0
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	for {
		id := firstUser + rand.IntN(userCount)
		if !u.taken[id] {
			u.keepLocked(id)
			return id
		}
	}
}

// keep notes the user of a machine that was adopted.
func (u *users) keep(id int) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.keepLocked(id)
}

func (u *users) keepLocked(id int) {
	if u.taken == nil {
		u.taken = map[int]bool{}
	}
	u.taken[id] = true
}

// giveBack is called when nothing runs as the user any more.
func (u *users) giveBack(id int) {
	u.mu.Lock()
	defer u.mu.Unlock()
	delete(u.taken, id)
}

// hostUser is the user with which the host sees a machine's sentry.
func hostUser(id int) int {
	if id == 0 {
		return nobody
	}
	return id
}
