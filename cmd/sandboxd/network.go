package main

import (
	"context"
	"log/slog"

	"github.com/spf13/pflag"

	"github.com/skerry-dev/skerry/internal/node"
)

// networkOptions are the flags about the sandboxes' networks.
type networkOptions struct{}

func (o *networkOptions) flags(f *pflag.FlagSet) {}

// networks is what a node needs, and the end of it.
type networks interface {
	node.Networks
	Close() error
}

func (o *networkOptions) open(ctx context.Context, dir string, log *slog.Logger) (networks, error) {
	return loopbackOnly{}, nil
}

// loopbackOnly gives sandboxes a loopback and nothing else.
type loopbackOnly struct{}

func (loopbackOnly) Acquire(context.Context) (node.Lease, error)       { return noLease{}, nil }
func (loopbackOnly) Adopt(context.Context, string) (node.Lease, error) { return noLease{}, nil }
func (loopbackOnly) Recover(context.Context, []string) error           { return nil }
func (loopbackOnly) Resolvers() []string                               { return nil }
func (loopbackOnly) Close() error                                      { return nil }

type noLease struct{}

func (noLease) ID() string                      { return "none" }
func (noLease) NetNSPath() string               { return "" }
func (noLease) Counters() (a, b int64, e error) { return 0, 0, nil }
func (noLease) Release(context.Context) error   { return nil }
