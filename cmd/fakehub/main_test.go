package main

import (
	"bytes"
	"errors"
	"flag"
	"math"
	"strings"
	"testing"
	"time"
)

func TestParse(t *testing.T) {
	t.Parallel()
	s, err := parse([]string{"--root", "/r", "--token", "hf_a=alice", "--token", "hf_b", "--gated", "org/x", "--rate-limit", "5", "--expiry", "3s",
		"--cap-edges", "8.7MB,68MB/s,0", "--fault", `{"kind": "reset", "after": -1}`, "--xet"}, &bytes.Buffer{})
	if err != nil {
		t.Fatal(err)
	}
	o := s.options
	if o.Root != "/r" || o.Tokens["hf_a"] != "alice" || o.Tokens["hf_b"] != "user" || s.gated[0] != "org/x" || o.APIQuota != 5 || o.Expiry != 3*time.Second ||
		len(o.Edges) != 3 || o.Edges[0] != 8_700_000 || o.Edges[1] != 68_000_000 || o.Edges[2] != 0 || len(s.faults) != 1 || s.faults[0].After != -1 || !o.Xet {
		t.Errorf("%+v", s)
	}
	for args, want := range map[string]string{
		"":                                   "--root is missing",
		"--root r --fail-rate 2":             "from 0 to 1",
		"--root r --cap-edges fast":          "no rate",
		"--root r --gated org/x":             "needs a --token",
		"--root r --fault {":                 "invalid value",
		"--root r more":                      `"more" is no flag`,
		`--root r --fault {"kind":"unkind"}`: "there is no fault unkind",
	} {
		if _, err := parse(strings.Fields(args), &bytes.Buffer{}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q gives %v, not %s", args, err, want)
		}
	}
	var help bytes.Buffer
	if _, err := parse([]string{"--help"}, &help); !errors.Is(err, flag.ErrHelp) || !strings.Contains(help.String(), "-cap-edges") {
		t.Errorf("--help gives %v\n%s", err, help.String())
	}
}

// Of all requests, the share that fails is the one that was asked for, in three equal parts.
func TestFailingShare(t *testing.T) {
	t.Parallel()
	for _, share := range []float64{.2, .9, 1} {
		left, failed := 1.0, 0.0
		for _, f := range failing(share)[:3] {
			now := left * f.Share
			if math.Abs(now-share/3) > 1e-9 {
				t.Errorf("of %v, %s happens to %v", share, f.Kind, now)
			}
			left -= now
			failed += now
		}
		if math.Abs(failed-share) > 1e-9 {
			t.Errorf("%v fail, not %v", failed, share)
		}
	}
}
