package network

import (
	"errors"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// notThere reports whether an error of the nftables library says that the object
// does not exist. Some of its errors are only text.
func notThere(err error) bool {
	return err != nil && (errors.Is(err, unix.ENOENT) || strings.HasSuffix(err.Error(), unix.ENOENT.Error()))
}

// whole repeats a listing of kernel objects until nothing changed while it was
// made: other programs create interfaces and routes too.
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

// routesBy returns the routes that match filter and mask.
func routesBy(filter *netlink.Route, mask uint64) ([]netlink.Route, error) {
	return whole(func() ([]netlink.Route, error) {
		return netlink.RouteListFiltered(netlink.FAMILY_V4, filter, mask)
	})
}
