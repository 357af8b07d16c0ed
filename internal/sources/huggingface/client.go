package huggingface

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"time"

	"github.com/industriverse/llmmodelmanager/internal/registry"
	"github.com/industriverse/llmmodelmanager/internal/sources"
)

// Limits on what the Hub's API may answer, so that a strange one cannot fill the memory.
const (
	maxAnswer = 64 << 20 // bytes of one page
	maxPages  = 1000
	maxFiles  = 100_000 // in one repository
)

// apiPatience bounds one request to the API, answer included. Downloads have no such bound.
const apiPatience = 60 * time.Second

// look is one look at the Hub: whom it is about, and what it has cost so far.
type look struct {
	asked
	requests atomic.Int64
	bytes    atomic.Int64
	notes    []string
	offline  bool // nothing is asked of the Hub
}

type lookKey struct{}

// counted makes every request under the context count for the look, also those to which a redirect leads.
func (l *look) counted(ctx context.Context) context.Context {
	return context.WithValue(ctx, lookKey{}, l)
}

// counting counts requests.
type counting struct{ next http.RoundTripper }

// RoundTrip implements http.RoundTripper.
func (c counting) RoundTrip(req *http.Request) (*http.Response, error) {
	if l, ok := req.Context().Value(lookKey{}).(*look); ok {
		l.requests.Add(1)
	}
	return c.next.RoundTrip(req)
}

func (l *look) cost() sources.Cost {
	return sources.Cost{Requests: int(l.requests.Load()), Bytes: l.bytes.Load()}
}

// info is what the Hub says of a repository at a revision; what is of no use here is left out.
type info struct {
	ID          string          `json:"id"`
	SHA         string          `json:"sha"`
	Gated       any             `json:"gated"` // false, "auto" or "manual"
	Disabled    bool            `json:"disabled"`
	Tags        []string        `json:"tags"`
	CardData    json.RawMessage `json:"cardData"`
	Safetensors struct {
		Parameters map[string]int64 `json:"parameters"`
	} `json:"safetensors"`
	GGUF struct {
		Total        int64  `json:"total"`
		ChatTemplate string `json:"chat_template"`
	} `json:"gguf"` // of one of its files
}

func (i info) gated() bool {
	switch v := i.Gated.(type) {
	case bool:
		return v
	case string:
		return v != "" && v != "false"
	}
	return false
}

// licence returns the licence of the model's card, by the name that its author gave it if it is none of the Hub's list.
func (i info) licence() string {
	var card map[string]any
	if json.Unmarshal(i.CardData, &card) == nil {
		name, _ := card["license"].(string)
		if list, ok := card["license"].([]any); ok && len(list) > 0 {
			name, _ = list[0].(string)
		}
		if own, ok := card["license_name"].(string); ok && own != "" && (name == "" || name == "other") {
			name = own
		}
		if name != "" {
			return clip(name)
		}
	}
	for _, tag := range i.Tags {
		if name, ok := strings.CutPrefix(tag, "license:"); ok {
			return clip(name)
		}
	}
	return ""
}

// info asks which commit the revision is, and what the Hub knows of the model.
func (s *Source) info(ctx context.Context, l *look) (info, error) {
	var in info
	_, err := s.json(ctx, l, s.api(l.id, "revision", l.revision), &in)
	if err != nil {
		return in, s.withRevisions(ctx, l, err)
	}
	if !commitHash.MatchString(in.SHA) {
		return in, notAHub(s.endpoint, fmt.Sprintf("its answer about %s names no commit", l.id))
	}
	if in.ID != "" && in.ID != l.id {
		l.notes = append(l.notes, fmt.Sprintf("%s was renamed to %s on the Hub; use the new name.", l.id, clip(in.ID)))
	}
	return in, nil
}

// entry is one file of a repository.
type entry struct {
	Path string `json:"path"`
	Type string `json:"type"` // file or directory
	Size int64  `json:"size"`
	OID  string `json:"oid"` // git's SHA-1 of the blob, or of the pointer if the file is in LFS
	LFS  *struct {
		OID  string `json:"oid"` // SHA-256
		Size int64  `json:"size"`
	} `json:"lfs"`
	XetHash string `json:"xetHash"`
}

// listing asks for all files of a commit.
func (s *Source) listing(ctx context.Context, l *look, commit string) (tree, error) {
	next := s.api(l.id, "tree", commit)
	next.RawQuery = url.Values{"recursive": {"true"}, "expand": {"false"}}.Encode()
	t := tree{}
	for page := 0; next != nil; page++ {
		if page == maxPages {
			return nil, registry.Errorf(registry.CodeInvalid, "%s lists more than %d pages of files; that is no model", l.id, maxPages)
		}
		var entries []entry
		header, err := s.json(ctx, l, next, &entries)
		if err != nil {
			return nil, err
		}
		if err := t.add(l.id, entries); err != nil {
			return nil, err
		}
		next = s.following(next, header)
	}
	return t, nil
}

// following returns the address of the next page; nil when there is none. Only its path and query are believed: the
// next page is asked for where the first one was, so that a token goes nowhere else.
func (s *Source) following(from *url.URL, header http.Header) *url.URL {
	for _, line := range header.Values("Link") {
		for link := range strings.SplitSeq(line, ",") {
			address, params, _ := strings.Cut(strings.TrimSpace(link), ";")
			if !strings.Contains(params, `rel="next"`) && !strings.Contains(params, "rel=next") {
				continue
			}
			u, err := from.Parse(strings.Trim(address, "<> "))
			if err != nil {
				return nil
			}
			u.Scheme, u.Host, u.User = s.endpoint.Scheme, s.endpoint.Host, nil
			return u
		}
	}
	return nil
}

// revisions asks for the names of branches and tags, for a message; nil when that does not work either.
func (s *Source) revisions(ctx context.Context, l *look) []string {
	var refs struct {
		Branches []struct {
			Name string `json:"name"`
		} `json:"branches"`
		Tags []struct {
			Name string `json:"name"`
		} `json:"tags"`
	}
	if _, err := s.json(ctx, l, s.api(l.id, "refs", ""), &refs); err != nil {
		return nil
	}
	var names []string
	for _, r := range refs.Branches {
		names = append(names, r.Name)
	}
	for _, r := range refs.Tags {
		names = append(names, r.Name)
	}
	return names
}

// api returns the address of /api/models/ID/WHAT/ARG, with ARG as one segment.
func (s *Source) api(id, what, arg string) *url.URL {
	u := s.endpoint.JoinPath("api", "models", id, what)
	if arg != "" {
		u = u.JoinPath(url.PathEscape(arg))
	}
	return u
}

// file returns the address of a file of a commit.
func (s *Source) file(id, commit, name string) *url.URL {
	u := s.endpoint.JoinPath(id, "resolve", commit)
	for part := range strings.SplitSeq(name, "/") {
		u = u.JoinPath(url.PathEscape(part))
	}
	return u
}

const (
	attempts   = 4
	firstPause = 300 * time.Millisecond
	maxPause   = 5 * time.Second // a longer one is told to who asked, not waited for
)

// json asks the API for a document and decodes it into v. What may pass is tried again, as far as that takes seconds.
func (s *Source) json(ctx context.Context, l *look, u *url.URL, v any) (http.Header, error) {
	pause := firstPause
	for try := 1; ; try++ {
		header, err := s.ask(ctx, l, u, v)
		if err == nil {
			return header, nil
		}
		wait, again := worthRetrying(err, pause)
		if !again || try == attempts {
			return nil, err
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil, ctx.Err()
		case <-timer.C:
		}
		pause *= 2
	}
}

func (s *Source) ask(ctx context.Context, l *look, u *url.URL, v any) (http.Header, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, apiPatience, errSlow)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, registry.Errorf(registry.CodeInternal, "no request can be made for %s", l.id)
	}
	s.dress(req, l.token)
	resp, err := s.client.Do(req)
	if err != nil {
		return nil, s.unreachable(ctx, l, err)
	}
	defer resp.Body.Close()
	body := &meter{r: io.LimitReader(resp.Body, maxAnswer+1), n: &l.bytes}
	if resp.StatusCode != http.StatusOK {
		return nil, s.explain(resp, l, "")
	}
	if page(resp) {
		return nil, notAHub(s.endpoint, "it answered with a web page")
	}
	if err := json.NewDecoder(body).Decode(v); err != nil {
		switch {
		case ctx.Err() != nil || body.err != nil:
			return nil, s.unreachable(ctx, l, body.err)
		case body.read > maxAnswer:
			return nil, notAHub(s.endpoint, fmt.Sprintf("its answer has more than %s", registry.Bytes(maxAnswer)))
		}
		return nil, notAHub(s.endpoint, "its answer is not the JSON that it should be")
	}
	return resp.Header, nil
}

// dress puts on a request what every request carries.
func (s *Source) dress(req *http.Request, token string) {
	req.Header.Set("User-Agent", userAgent)
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
}

// page reports whether an answer claims to be a web page.
func page(resp *http.Response) bool {
	return strings.HasPrefix(strings.ToLower(resp.Header.Get("Content-Type")), "text/html")
}

// meter counts what is read, and remembers why reading stopped, as decoders wrap it.
type meter struct {
	r    io.Reader
	n    *atomic.Int64
	read int64
	err  error
}

func (m *meter) Read(p []byte) (int, error) {
	n, err := m.r.Read(p)
	m.n.Add(int64(n))
	m.read += int64(n)
	if err != nil && !errors.Is(err, io.EOF) {
		m.err = err
	}
	return n, err
}
