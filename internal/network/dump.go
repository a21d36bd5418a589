package network

import (
	"errors"

	"github.com/vishvananda/netlink"
)

// whole repeats a listing of the kernel's until nothing has changed while it
// was made: others on the machine make interfaces and routes too.
func whole[T any](list func() ([]T, error)) ([]T, error) {
	const tries = 1000 // each takes well under a millisecond
	for range tries - 1 {
		if l, err := list(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			return l, err
		}
	}
	return list()
}

func allLinks() ([]netlink.Link, error) { return whole(netlink.LinkList) }

func addressesOf(link netlink.Link) ([]netlink.Addr, error) {
	return whole(func() ([]netlink.Addr, error) { return netlink.AddrList(link, netlink.FAMILY_V4) })
}

// routesBy returns the routes that filter and mask choose.
func routesBy(filter *netlink.Route, mask uint64) ([]netlink.Route, error) {
	return whole(func() ([]netlink.Route, error) {
		return netlink.RouteListFiltered(netlink.FAMILY_V4, filter, mask)
	})
}
