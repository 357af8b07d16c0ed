// Package huggingface is the source for models of the Hugging Face Hub, or of a mirror that speaks its protocol. What it
// fetches lies in the Hub's own cache, which every Python tool of the machine shares: what they have fetched is used
// without a byte, and the other way round.
//
// It was written from the sources of huggingface_hub 2.4, and its tests hold it against that client.
package huggingface

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/industriverse/llmmodelmanager/internal/registry"
	"github.com/industriverse/llmmodelmanager/internal/sources"
	"github.com/industriverse/llmmodelmanager/internal/sources/fetch"
)

// Options configure the source. What is left empty is read from the environment, as the Python client reads it.
type Options struct {
	Cache    string // the folder of the cache; else HF_HUB_CACHE, HF_HOME/hub, XDG_CACHE_HOME/huggingface/hub, ~/.cache/huggingface/hub
	Endpoint string // address of the Hub; else HF_ENDPOINT, https://huggingface.co
	// Token returns the token for models that bring none of their own, "" for none; nil reads HF_TOKEN, else the file
	// HF_TOKEN_PATH, else HF_HOME/token, anew each time.
	Token   func() string
	Offline bool // ask the cache only; also when HF_HUB_OFFLINE is true

	Fetcher   *fetch.Fetcher
	Transport http.RoundTripper // for every request; nil is fetch.Transport with the rule about private addresses
	Logger    *slog.Logger      // nil discards
	Now       func() time.Time
	Getenv    func(string) string // nil is os.Getenv
}

// Source implements sources.Source, Offerer, Checker and Keeper. It is safe for concurrent use, also by several
// processes on one cache.
type Source struct {
	cache    string
	endpoint *url.URL
	token    func() string
	offline  bool
	fetcher  *fetch.Fetcher
	client   *http.Client // follows redirects by the rules of redirect.go
	log      *slog.Logger
	now      func() time.Time
	trees    treeMemory
	large    int64 // see the constant; tests have no files that large
}

var (
	_ sources.Source     = (*Source)(nil)
	_ sources.Offerer    = (*Source)(nil)
	_ sources.Checker    = (*Source)(nil)
	_ sources.Normalizer = (*Source)(nil)
	_ sources.Keeper     = (*Source)(nil)
)

const defaultEndpoint = "https://huggingface.co"

// New returns the source. It touches neither network nor disk. CodeInvalid when the endpoint is no address, or no folder
// can be found for the cache.
func New(o Options) (*Source, error) {
	env := environment{o.Getenv}
	if env.getenv == nil {
		env.getenv = os.Getenv
	}
	s := &Source{cache: o.Cache, token: o.Token, offline: o.Offline || env.offline(), fetcher: o.Fetcher, log: o.Logger, now: o.Now, large: large}
	var err error
	if s.cache == "" {
		s.cache = env.cache()
	}
	if s.cache, err = filepath.Abs(s.cache); err != nil {
		return nil, registry.Errorf(registry.CodeInvalid, "the folder of the Hub's cache cannot be told: %w; set HF_HUB_CACHE to an absolute path", err)
	}
	if s.endpoint, err = parseEndpoint(o.Endpoint, env); err != nil {
		return nil, err
	}
	if s.token == nil {
		s.token = env.token
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if s.now == nil {
		s.now = time.Now
	}
	if s.fetcher == nil {
		s.fetcher = fetch.New(fetch.Options{Logger: s.log, Now: s.now})
	}
	transport := o.Transport
	if transport == nil {
		transport = guardedTransport(s.endpoint)
	}
	s.client = &http.Client{Transport: counting{transport}, CheckRedirect: s.checkRedirect}
	return s, nil
}

// Type returns SourceHuggingFace.
func (s *Source) Type() registry.SourceType { return registry.SourceHuggingFace }

// Cache returns the folder of the cache.
func (s *Source) Cache() string { return s.cache }

// environment reads what huggingface_hub/constants.py reads, in the same order.
type environment struct{ getenv func(string) string }

func (e environment) first(names ...string) string {
	for _, n := range names {
		if v := e.getenv(n); v != "" {
			return v
		}
	}
	return ""
}

// home is HF_HOME or its default.
func (e environment) home() string {
	if v := e.first("HF_HOME"); v != "" {
		return e.expand(v)
	}
	if v := e.first("XDG_CACHE_HOME"); v != "" {
		return e.expand(filepath.Join(v, "huggingface"))
	}
	return e.expand("~/.cache/huggingface")
}

func (e environment) cache() string {
	if v := e.first("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"); v != "" {
		return e.expand(v)
	}
	return filepath.Join(e.home(), "hub")
}

func (e environment) offline() bool { return truth(e.first("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")) }

// token reads the user's token. HF_HUB_DISABLE_IMPLICIT_TOKEN keeps it unused.
func (e environment) token() string {
	if truth(e.getenv("HF_HUB_DISABLE_IMPLICIT_TOKEN")) {
		return ""
	}
	if v := cleanToken(e.first("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")); v != "" {
		return v
	}
	path := filepath.Join(e.home(), "token")
	if v := e.first("HF_TOKEN_PATH"); v != "" {
		path = e.expand(v)
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		return "" // not logged in; the Hub says so if it matters
	}
	return cleanToken(string(raw))
}

func cleanToken(t string) string {
	return strings.TrimSpace(strings.NewReplacer("\r", "", "\n", "").Replace(t))
}

func truth(v string) bool {
	switch strings.ToUpper(v) {
	case "1", "ON", "YES", "TRUE":
		return true
	}
	return false
}

// expand replaces a leading ~ and variables, leaving unknown ones as they are, as Python does.
func (e environment) expand(p string) string {
	if p == "~" || strings.HasPrefix(p, "~/") {
		home := e.getenv("HOME")
		if home == "" {
			home, _ = os.UserHomeDir() // "" leaves a path from the root, where writing says what is wrong
		}
		p = filepath.Join(home, p[1:])
	}
	return os.Expand(p, func(name string) string {
		if v := e.getenv(name); v != "" {
			return v
		}
		return "$" + name
	})
}

func parseEndpoint(given string, env environment) (*url.URL, error) {
	if given == "" {
		given = env.first("HF_ENDPOINT")
	}
	if given == "" {
		given = defaultEndpoint
	}
	u, err := url.Parse(strings.TrimRight(given, "/"))
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return nil, registry.Errorf(registry.CodeInvalid, "HF_ENDPOINT is not the address of a Hub: give one such as %s, without a user name and without a query", defaultEndpoint)
	}
	return u, nil
}

// ended returns what a cancelled or expired context says; nil while it runs.
func ended(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

func absent(err error) bool { return errors.Is(err, fs.ErrNotExist) }
