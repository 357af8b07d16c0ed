package netaddr

import (
	"context"
	"net"
	"net/netip"
	"time"
)

// lookupFor is how long a name is looked up.
const lookupFor = 5 * time.Second

// Here reports whether a host, an address or a name, is this machine: loopback, or an address of one of its interfaces. What
// cannot be looked up counts as here, which is the more careful answer for all that asks whose memory something takes.
func Here(ctx context.Context, host string) bool {
	ctx, cancel := context.WithTimeout(ctx, lookupFor)
	defer cancel()
	found, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		return true
	}
	own, err := net.InterfaceAddrs()
	if err != nil {
		return true
	}
	for _, ip := range found {
		ip = ip.Unmap().WithZone("")
		if ip.IsLoopback() || ip.IsUnspecified() {
			return true
		}
		for _, a := range own {
			if p, err := netip.ParsePrefix(a.String()); err == nil && p.Addr().Unmap().WithZone("") == ip {
				return true
			}
		}
	}
	return false
}
