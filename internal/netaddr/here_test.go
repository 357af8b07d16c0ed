package netaddr

import (
	"net"
	"net/netip"
	"testing"
)

func TestHere(t *testing.T) {
	want := map[string]bool{
		"127.0.0.1": true, "127.1.2.3": true, "::1": true, "localhost": true, "::ffff:127.0.0.1": true, "0.0.0.0": true,
		"192.0.2.1": false, "2001:db8::1": false, "::ffff:192.0.2.1": false,
		"no such name": true, // nobody knows
	}
	own, err := net.InterfaceAddrs()
	if err != nil || len(own) == 0 {
		t.Fatalf("addresses of this machine: %v, %v", own, err)
	}
	for _, a := range own {
		p, err := netip.ParsePrefix(a.String())
		if err != nil {
			t.Fatal(err)
		}
		want[p.Addr().String()] = true
	}
	for host, here := range want {
		if got := Here(t.Context(), host); got != here {
			t.Errorf("%s: %t, want %t", host, got, here)
		}
	}
}
