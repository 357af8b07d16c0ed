// Package ollama is the source for models of an Ollama library: Ollama's own, a private registry that speaks the same
// protocol (the OCI distribution specification's, with Ollama's media types), or the Hub under hf.co. It keeps them in
// Ollama's own folder layout, so that Ollama uses what was fetched here, and what Ollama pulled is used from there
// without a byte; the engine llamacpp is given the path of the blob that holds the weights.
//
// The protocol, as ollama 0.33 speaks it: GET /v2/NAMESPACE/MODEL/manifests/TAG answers with JSON that names blobs by
// sha256 and media type; GET /v2/NAMESPACE/MODEL/blobs/DIGEST answers with the bytes, or points to a storage that has
// them. The library asks nobody to log in. A registry that does answers 401 with a challenge: Basic, or Bearer with the
// address where a token is given for credentials, or for a signature with an Ollama key.
package ollama

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/industriverse/llmmodelmanager/internal/registry"
	"github.com/industriverse/llmmodelmanager/internal/sources"
	"github.com/industriverse/llmmodelmanager/internal/sources/fetch"
)

// Options configure the source.
type Options struct {
	Dir     string         // the folder of models, in Ollama's layout; see Folder. Made when something is fetched
	Fetcher *fetch.Fetcher // brings the blobs
	// Registry answers in place of registry.ollama.ai: the address of a mirror, such as https://mirror.example.com. It may be
	// http:// and in a private network, as only an admin can set it. "" is the library itself.
	Registry string
	// Insecure are the registries that are spoken to without encryption, as ollama pull --insecure does; host or host:port.
	// They may be in a private network.
	Insecure []string
	// Private are registries with encryption that may be in a private network; host or host:port. Any other name that leads
	// to a private address is refused, so that nobody looks around in the server's network by registering models.
	Private []string
	Key     string       // the file of an Ollama key, such as ~/.ollama/id_ed25519, to read private models of a library with; "" none
	Agent   string       // User-Agent; "" is llmm
	Logger  *slog.Logger // nil discards
	Now     func() time.Time
}

// Folder returns the folder of models that Ollama itself would use on this machine when it is told one: OLLAMA_MODELS.
// Without it, it is a folder of our own below data. getenv is os.Getenv.
func Folder(data string, getenv func(string) string) string {
	return cmp.Or(strings.Trim(strings.TrimSpace(getenv("OLLAMA_MODELS")), `"'`), filepath.Join(data, "ollama"))
}

// Source implements sources.Source, Offerer, Checker, Keeper and Namer. It is safe for concurrent use, also by several
// processes on one folder.
type Source struct {
	folder
	fetcher           *fetch.Fetcher
	mirror            *url.URL
	insecure, private map[string]bool
	key, agent        string
	log               *slog.Logger
	now               func() time.Time
	strict, trusting  *http.Client // trusting goes to private addresses, too

	mu    sync.Mutex
	known map[string]*manifest // of the latest looks, by digest, so that Fetch need not ask again
	order []string             // of known, the oldest first
}

var (
	_ sources.Source  = (*Source)(nil)
	_ sources.Offerer = (*Source)(nil)
	_ sources.Checker = (*Source)(nil)
	_ sources.Keeper  = (*Source)(nil)
	_ sources.Namer   = (*Source)(nil)
)

// maxRemembered bounds the manifests that are kept in memory.
const maxRemembered = 64

// New returns the source. CodeInvalid says which option is wrong. The folder need not exist.
func New(o Options) (*Source, error) {
	s := &Source{
		folder: folder{o.Dir}, fetcher: o.Fetcher, insecure: map[string]bool{}, private: map[string]bool{},
		key: o.Key, agent: cmp.Or(o.Agent, "llmm"), log: o.Logger, now: o.Now, known: map[string]*manifest{},
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if s.now == nil {
		s.now = time.Now
	}
	if !filepath.IsAbs(o.Dir) {
		abs, err := filepath.Abs(o.Dir)
		if o.Dir == "" || err != nil {
			return nil, registry.Errorf(registry.CodeInvalid, "the folder of Ollama's models is %s, which is none; set OLLAMA_MODELS to its absolute path", quote(o.Dir))
		}
		s.dir = abs
	}
	for _, list := range []struct {
		hosts []string
		into  map[string]bool
	}{{o.Insecure, s.insecure}, {o.Private, s.private}} {
		for _, host := range list.hosts {
			if msg := checkPart(host, 350, ".:"); msg != "" {
				return nil, registry.Errorf(registry.CodeInvalid, "the registry %s %s; give a host's name with its port, such as registry.example.com:5000", quote(host), msg)
			}
			list.into[strings.ToLower(host)] = true
		}
	}
	if o.Registry != "" {
		u, err := url.Parse(o.Registry)
		if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" || strings.Trim(u.Path, "/") != "" {
			return nil, registry.Errorf(registry.CodeInvalid, "the address of the registry that stands for Ollama's library must be like https://mirror.example.com, without a user, a path or a query")
		}
		s.mirror = &url.URL{Scheme: u.Scheme, Host: u.Host}
	}
	s.strict, s.trusting = s.clients()
	return s, nil
}

// Folder returns the folder of models.
func (s *Source) Folder() string { return s.dir }

// Type returns SourceOllama.
func (s *Source) Type() registry.SourceType { return registry.SourceOllama }

// Canonical returns the shortest of the names that mean the same model: llama3.2 becomes llama3.2:latest.
func (s *Source) Canonical(path string) string {
	n, err := ParseName(path)
	if err != nil {
		return path
	}
	return n.String()
}

// Check returns what is wrong with a model's fields. It does not touch network or disk.
func (s *Source) Check(ref sources.Ref) []registry.FieldError {
	name, _, errs := read(ref)
	add := func(field, format string, args ...any) {
		errs = append(errs, registry.FieldError{Field: field, Msg: fmt.Sprintf(format, args...)})
	}
	switch {
	case name.Cloud:
		add("source_path", "names a model that runs on Ollama's own machines only; take a tag without cloud, or source_type external_service")
	case name.Scheme == "http" && !s.plain(name.Host):
		add("source_path", "asks for a registry without encryption; use https, or let an admin add %s to the insecure registries", name.Host)
	}
	if ref.Format != "" && ref.Format != registry.FormatGGUF {
		add("model_format", "must be gguf: models of an Ollama library that engines here can run are GGUF files, not %s", ref.Format)
	}
	return errs
}

// read returns the parts of a reference that can be used, and what is wrong with the others.
func read(ref sources.Ref) (Name, credentials, []registry.FieldError) {
	var errs []registry.FieldError
	name, err := ParseName(ref.Path)
	if err != nil {
		errs = append(errs, registry.FieldError{Field: "source_path", Msg: err.Error()})
	}
	if ref.Revision != "" && ref.Revision != registry.DefaultRevision {
		errs = append(errs, registry.FieldError{Field: "revision",
			Msg: "is not used with Ollama's names; put the tag or the digest into source_path, such as llama3.2:3b or llama3.2@sha256:…"})
	}
	creds, wrong := readCredentials(ref.Params)
	return name, creds, append(errs, wrong...)
}

// look is what a name stands for now.
type look struct {
	name     Name
	creds    credentials
	session  *session // nil when the registry may not be spoken to
	manifest *manifest
	notes    []string
}

// look finds the manifest of a reference: in its registry, or on this disk where the registry cannot say. The registry is
// asked even for a name with a digest that is here, as it knows who may read the model.
func (s *Source) look(ctx context.Context, ref sources.Ref) (*look, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	name, creds, faults := read(ref)
	if len(faults) > 0 {
		return nil, &registry.Error{Code: registry.CodeInvalid, Op: "ollama", Msg: "the model cannot be looked up in an Ollama library", Fields: faults}
	}
	if name.Cloud {
		return nil, cloudOnly(name)
	}
	l := &look{name: name, creds: creds}
	var err error
	if l.session, err = s.open(name, creds); err == nil {
		l.manifest, err = l.session.manifest(ctx, name.reference())
	}
	if err == nil {
		s.remember(l.manifest)
		return l, nil
	}
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	// Whoever made a model here, or pulled it before the network went away, goes on with it. Not so who is refused: what one
	// team fetched with its password is not given to another without.
	var e *registry.Error
	if errors.As(err, &e) && e.Failure != nil && e.Failure.Kind == registry.FailureGated {
		return nil, err
	}
	m, diskErr := s.stored(name)
	if name.Digest != "" {
		m, diskErr = s.pinned(name), nil
	}
	if diskErr != nil || m == nil || !s.complete(m) {
		return nil, err
	}
	l.manifest = m
	if registry.CodeOf(err) == registry.CodeNotFound {
		l.notes = append(l.notes, fmt.Sprintf("It is kept on this machine only: %s does not have it.", name.Host))
	} else {
		l.notes = append(l.notes, fmt.Sprintf("What is on this machine is used, as the registry could not be asked: %v.", err))
	}
	return l, nil
}

// pinned returns a manifest on this disk that has the digest of the name, under whatever tag it is kept; nil when there is
// none.
func (s *Source) pinned(name Name) *manifest {
	if m, err := s.stored(name); err == nil && m != nil && m.digest == name.Digest {
		return m
	}
	dir := filepath.Dir(s.place(name))
	tags, err := os.ReadDir(dir)
	if err != nil {
		return nil
	}
	for _, t := range tags {
		if m, err := readManifestFile(filepath.Join(dir, t.Name())); err == nil && m != nil && m.digest == name.Digest {
			return m
		}
	}
	return nil
}

func (s *Source) remember(m *manifest) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.known[m.digest] == nil {
		s.order = append(s.order, m.digest)
	}
	s.known[m.digest] = m
	for len(s.order) > maxRemembered {
		delete(s.known, s.order[0])
		s.order = s.order[1:]
	}
}

func (s *Source) remembered(digest string) *manifest {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.known[digest]
}
