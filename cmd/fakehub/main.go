// Command fakehub is a Hugging Face Hub on this machine. It serves a folder of real files to every client of the Hub,
// unmodified, and misbehaves on demand. It is for tests, demonstrations and measurements.
//
//	go run ./cmd/fakehub --root DIR
//
// DIR/ORG/NAME/ is the repository ORG/NAME, and DIR/ORG/NAME@BRANCH/ the same at another branch. A file
// DIR/ORG/NAME.hub.json says what else there is to know of it, all of it optional:
//
//	{"gated": "auto", "private": false, "disabled": false, "authorized": ["alice"], "renamed_to": "org/new-name",
//	 "tags": {"v1.0": "main"}, "lfs": ["*.dat"], "names": {"../x": "a name that no folder holds"},
//	 "card_data": {"license": "mit"}, "pipeline_tag": "text-generation", "library_name": "transformers"}
//
// Files are read when they are asked for: what changes in the folder is a new commit. Large files (by name, as on the
// Hub, or from 10 MB on) come from the second address, which checks signatures and forgets them after --expiry.
//
// How it behaves can be changed while it runs, at /-/hubtest/ of the first address:
//
//	curl -X POST   $HF_ENDPOINT/-/hubtest/faults -d '{"kind": "reset", "host": "cdn", "share": 0.5, "after": -1}'
//	curl -X DELETE $HF_ENDPOINT/-/hubtest/faults
//	curl -X POST   $HF_ENDPOINT/-/hubtest/edges -d '[8700000, 68000000]'
//	curl           $HF_ENDPOINT/-/hubtest/served
//
// docs/fakehub.md has the kinds of fault and their fields.
package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/industriverse/llmmodelmanager/internal/sources/hubtest"
)

// settings are the flags.
type settings struct {
	options hubtest.Options
	gated   []string
	tokens  []string
	faults  []hubtest.Fault
	share   float64 // of requests that fail
	verbose bool
}

func main() {
	s, err := parse(os.Args[1:], os.Stderr)
	if errors.Is(err, flag.ErrHelp) {
		return
	}
	if err == nil {
		err = run(s, os.Stdout)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "fakehub:", err)
		os.Exit(1)
	}
}

func parse(args []string, out io.Writer) (settings, error) {
	var s settings
	f := flag.NewFlagSet("fakehub", flag.ContinueOnError)
	f.SetOutput(out)
	f.Usage = func() {
		fmt.Fprintf(out, "A Hugging Face Hub on this machine.\n\n  fakehub --root DIR [flags]\n\nDIR/ORG/NAME/ is the repository ORG/NAME; docs/fakehub.md says the rest.\n\n")
		f.PrintDefaults()
	}
	f.StringVar(&s.options.Root, "root", "", "`folder` with ORG/NAME folders to serve")
	f.StringVar(&s.options.Listen, "listen", "127.0.0.1:8090", "`address` of the Hub")
	f.StringVar(&s.options.CDNListen, "cdn", "127.0.0.1:8091", "`address` of the second host, where large files come from")
	f.Func("token", "a `token` that is known, as TOKEN or TOKEN=USER; may be repeated. With one, unknown tokens are refused", func(v string) error {
		s.tokens = append(s.tokens, v)
		return nil
	})
	f.Func("gated", "a `repository` whose files only the users of known tokens may have; may be repeated", func(v string) error {
		s.gated = append(s.gated, v)
		return nil
	})
	f.DurationVar(&s.options.Expiry, "expiry", time.Hour, "how long a signed address is good")
	f.IntVar(&s.options.PageSize, "page-size", 0, "entries of one page of a tree (1000, with expand 50)")
	f.IntVar(&s.options.APIQuota, "rate-limit", 0, "API `requests` of one visitor in each --window before 429; 0 is unlimited")
	f.IntVar(&s.options.ResolveQuota, "rate-limit-files", 0, "file `requests` of one visitor in each --window before 429; 0 is unlimited")
	f.DurationVar(&s.options.Window, "window", 5*time.Minute, "of the rate limits")
	f.Func("cap-edges", "`rates` that connections to the second host are capped to, in turn: 8.7MB,68MB per second; 0 is uncapped", func(v string) error {
		for part := range strings.SplitSeq(v, ",") {
			n, err := bytesOf(part)
			if err != nil {
				return err
			}
			s.options.Edges = append(s.options.Edges, n)
		}
		return nil
	})
	f.BoolVar(&s.options.Xet, "xet", false, "offer large files by Xet, too; the Python client then takes them that way")
	f.Float64Var(&s.share, "fail-rate", 0, "`share` of the requests for files that fail, 0 to 1: a third with 429, a third with 503, a third cut off on the way")
	f.Func("fault", "a `fault` as JSON, or a list of them; may be repeated", func(v string) error {
		var list []hubtest.Fault
		if !strings.HasPrefix(strings.TrimSpace(v), "[") {
			v = "[" + v + "]"
		}
		if err := json.Unmarshal([]byte(v), &list); err != nil {
			return err
		}
		for _, fault := range list {
			if !slices.Contains(hubtest.FaultKinds(), fault.Kind) {
				return fmt.Errorf("there is no fault %s; there are %v", fault.Kind, hubtest.FaultKinds())
			}
		}
		s.faults = append(s.faults, list...)
		return nil
	})
	f.Uint64Var(&s.options.Seed, "seed", 1, "of everything that happens by chance")
	f.BoolVar(&s.verbose, "v", false, "log what goes wrong here, too")
	if err := f.Parse(args); err != nil {
		return s, err
	}
	if f.NArg() > 0 {
		return s, fmt.Errorf("%q is no flag; see --help", f.Arg(0))
	}
	if s.options.Root == "" {
		return s, errors.New("--root is missing: the folder with ORG/NAME folders to serve; see --help")
	}
	if s.share < 0 || s.share > 1 {
		return s, errors.New("--fail-rate is a share, from 0 to 1")
	}
	for _, t := range s.tokens {
		if s.options.Tokens == nil {
			s.options.Tokens = map[string]string{}
		}
		token, user, named := strings.Cut(t, "=")
		if !named {
			user = "user"
		}
		s.options.Tokens[token] = user
	}
	if len(s.gated) > 0 && len(s.tokens) == 0 {
		return s, errors.New("--gated needs a --token: without one nobody may have the files")
	}
	return s, nil
}

// bytesOf reads a rate such as 8.7MB or 500kB.
func bytesOf(text string) (int64, error) {
	text = strings.TrimSuffix(strings.TrimSpace(text), "/s")
	factor := 1.0
	for unit, f := range map[string]float64{"kB": 1e3, "KB": 1e3, "MB": 1e6, "GB": 1e9} {
		if number, ok := strings.CutSuffix(text, unit); ok {
			text, factor = number, f
			break
		}
	}
	n, err := strconv.ParseFloat(strings.TrimSpace(text), 64)
	if err != nil || n < 0 {
		return 0, fmt.Errorf("%q is no rate; write 8.7MB", text)
	}
	return int64(n * factor), nil
}

// failing are the faults of --fail-rate. Each is looked at when those before it did not happen, so that the three
// happen equally often and share is what happens in all.
func failing(share float64) []hubtest.Fault {
	third := share / 3
	var list []hubtest.Fault
	for _, match := range []string{"/resolve/", "/resolve-cache/", "/repos/"} {
		list = append(list,
			hubtest.Fault{Kind: hubtest.FaultStatus, Match: match, Status: http.StatusTooManyRequests, Share: third},
			hubtest.Fault{Kind: hubtest.FaultStatus, Match: match, Status: http.StatusServiceUnavailable, Share: third / (1 - third)},
			hubtest.Fault{Kind: hubtest.FaultTruncate, Match: match, After: hubtest.Anywhere, Share: third / (1 - 2*third)})
	}
	return list
}

func run(s settings, out io.Writer) error {
	level := slog.LevelError
	if s.verbose {
		level = slog.LevelDebug
	}
	s.options.Logger = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
	s.options.Gated = s.gated
	h, err := hubtest.Start(s.options)
	if err != nil {
		return err
	}
	bytes, err := h.Warm()
	if err != nil {
		return errors.Join(err, h.Close())
	}
	ids, err := h.Repositories()
	if err != nil {
		return errors.Join(err, h.Close())
	}
	if s.share > 0 {
		h.Fault(failing(s.share)...)
	}
	h.Fault(s.faults...)
	fmt.Fprintf(out, "# %d repositories, %.1f MB; large files come from %s\n", len(ids), float64(bytes)/1e6, h.CDN)
	for _, id := range ids {
		fmt.Fprintf(out, "#   %s\n", id)
	}
	fmt.Fprintf(out, "export HF_ENDPOINT=%s\n", h.URL)
	for token := range s.options.Tokens {
		fmt.Fprintf(out, "export HF_TOKEN=%s\n", token)
		break
	}
	end := make(chan os.Signal, 1)
	signal.Notify(end, os.Interrupt, syscall.SIGTERM)
	<-end
	return h.Close()
}
