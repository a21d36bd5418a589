package api

import (
	"context"
	"sync"

	"github.com/skerry-dev/skerry"
)

const (
	// maxOpen bounds the calls that may stay open for hours, each of which
	// holds buffers of up to a MiB; maxOpenEach bounds those of one project,
	// so that none can use up the others'.
	maxOpen     = 4000
	maxOpenEach = 1000
)

// openCalls counts the streams, terminals, uploads and downloads in progress.
type openCalls struct {
	mu   sync.Mutex
	all  int
	each map[string]int // by project id
}

// enter counts one more call of a project until leave is called, once.
func (o *openCalls) enter(project string) (leave func(), err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.all >= maxOpen || o.each[project] >= maxOpenEach {
		return nil, skerry.Errorf(skerry.CodeRateLimited, "too many streams, terminals and transfers are open; a project may have %d", maxOpenEach)
	}
	if o.each == nil {
		o.each = map[string]int{}
	}
	o.all++
	o.each[project]++
	return func() { o.leave(project) }, nil
}

func (o *openCalls) leave(project string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.all--
	if o.each[project]--; o.each[project] == 0 {
		delete(o.each, project)
	}
}

// streamContext returns a context for an answer that may take hours: it ends
// with the request and when the server is asked to end. The call counts as
// open until done is called.
func (s *Server) streamContext(c *call) (ctx context.Context, done func(), err error) {
	leave, err := s.open.enter(c.scope.ProjectID)
	if err != nil {
		return nil, nil, err
	}
	ctx, cancel := context.WithCancel(c.r.Context())
	stop := context.AfterFunc(s.draining, cancel)
	return ctx, func() { stop(); cancel(); leave() }, nil
}
