package fetch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"sync"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// HTTP is a Remote behind an address that understands Range. It must not be copied once it is used.
//
// An address may expire. Locate finds it; it is kept until an answer of 401, 403, 404 or 410, then Locate is called once
// more with renew, and when the new address is answered so, too, that is the answer. Requests that run at the same
// time share one renewal.
type HTTP struct {
	// Client sends the requests. Its rules for redirects apply: it must not carry a token to another host.
	Client *http.Client
	// Locate returns where the bytes are and the headers to ask with. Its errors end the fetch unless they are a *RetryError.
	Locate func(ctx context.Context, renew bool) (address string, header http.Header, err error)
	// Explain makes an error of a final answer, for a source that knows what it means; nil, or a result of nil, is a
	// general one. It may read the body, which is closed afterwards.
	Explain func(*http.Response) error
	// Tag returns what an answer says of its content, to be compared with File.Tag; nil compares nothing. Answers with
	// different ETags are never mixed, with or without it.
	Tag func(*http.Response) string

	mu      sync.Mutex
	address string
	header  http.Header
	round   int    // how often Locate was called
	etag    string // of the first answer of this round's address
}

// Open implements Remote.
func (h *HTTP) Open(ctx context.Context, off, end int64) (*Answer, error) {
	round := 0
	for {
		address, header, now, err := h.located(ctx, round)
		if err != nil {
			return nil, err
		}
		resp, err := h.ask(ctx, address, header, off, end)
		if err != nil {
			return nil, err
		}
		switch resp.StatusCode {
		case http.StatusUnauthorized, http.StatusForbidden, http.StatusNotFound, http.StatusGone:
			// An address that expires is answered in any of these ways.
			if round == 0 {
				drain(resp)
				round = now
				continue
			}
		}
		return h.answer(resp, off, end, now)
	}
}

// located returns the address. stale is the round whose address was refused; 0 is none.
func (h *HTTP) located(ctx context.Context, stale int) (string, http.Header, int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.round == 0 || h.round == stale {
		address, header, err := h.Locate(ctx, h.round > 0)
		if err != nil {
			return "", nil, 0, err
		}
		h.address, h.header, h.etag = address, header, ""
		h.round++
	}
	return h.address, h.header, h.round, nil
}

func (h *HTTP) ask(ctx context.Context, address string, header http.Header, off, end int64) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return nil, registry.Errorf(registry.CodeUnavailable, "the other side gave an address that cannot be used")
	}
	for k, v := range header {
		req.Header[k] = v
	}
	req.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", off, end-1))
	// Compressed, the bytes would be others than those that the size and the digest are of.
	req.Header.Set("Accept-Encoding", "identity")
	resp, err := h.Client.Do(req)
	if err != nil {
		if resp != nil {
			resp.Body.Close()
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, Transient(req.URL.Host, err)
	}
	return resp, nil
}

// answer makes an Answer of a response, or closes it and returns an error.
func (h *HTTP) answer(resp *http.Response, off, end int64, round int) (*Answer, error) {
	a, err := h.judge(resp, off, end, round)
	if err != nil {
		drain(resp)
		return nil, err
	}
	return a, nil
}

func (h *HTTP) judge(resp *http.Response, off, end int64, round int) (*Answer, error) {
	a := &Answer{Body: resp.Body, Offset: off, Size: -1, Page: isPage(resp.Header)}
	if enc := resp.Header.Get("Content-Encoding"); enc != "" && enc != "identity" && resp.StatusCode < 300 {
		return nil, wrong("%s sent the file compressed as %q, which it was not asked for", hostOf(resp), enc)
	}
	switch {
	case resp.StatusCode == http.StatusPartialContent:
		first, last, size, ok := contentRange(resp.Header.Get("Content-Range"))
		if !ok || first != off || last >= end || last < first {
			return nil, wrong("%s answered with the range %q where bytes %d to %d were asked for", hostOf(resp), short(resp.Header.Get("Content-Range")), off, end-1)
		}
		if resp.ContentLength >= 0 && resp.ContentLength != last-first+1 {
			return nil, wrong("%s announced %d bytes for the range %q", hostOf(resp), resp.ContentLength, short(resp.Header.Get("Content-Range")))
		}
		a.Size = size
	case resp.StatusCode == http.StatusOK:
		a.Offset, a.Whole, a.Size = 0, true, resp.ContentLength
	case resp.StatusCode == http.StatusRequestedRangeNotSatisfiable:
		_, _, size, _ := contentRange(resp.Header.Get("Content-Range"))
		return nil, wrong("%s has no bytes %d to %d: the file has %s there", hostOf(resp), off, end-1, sizeWords(size))
	default:
		return nil, h.explain(resp)
	}
	if err := h.sameContent(resp, round); err != nil {
		return nil, err
	}
	if h.Tag != nil {
		a.Tag = h.Tag(resp)
	}
	return a, nil
}

func sizeWords(size int64) string {
	if size < 0 {
		return "another size"
	}
	return fmt.Sprintf("%d bytes", size)
}

// sameContent compares the ETag with that of the first answer from this address.
func (h *HTTP) sameContent(resp *http.Response, round int) error {
	etag := resp.Header.Get("ETag")
	if etag == "" || strings.HasPrefix(etag, "W/") {
		return nil
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.round != round {
		return nil
	}
	if h.etag == "" {
		h.etag = etag
	}
	if h.etag != etag {
		return wrong("the file at %s was replaced by another while it was fetched (its ETag is not the same any more)", hostOf(resp))
	}
	return nil
}

func (h *HTTP) explain(resp *http.Response) error {
	if err := StatusError(resp); err != nil {
		return err
	}
	if h.Explain != nil {
		if err := h.Explain(resp); err != nil {
			return err
		}
	}
	host, code := hostOf(resp), resp.StatusCode
	switch code {
	case http.StatusNotFound, http.StatusGone:
		return registry.Errorf(registry.CodeNotFound, "%s does not have the file any more (it answered %d); look the model up again", host, code)
	case http.StatusUnauthorized, http.StatusForbidden:
		return registry.Errorf(registry.CodeUnavailable, "%s refuses to give the file (it answered %d); check the token and the permissions", host, code)
	}
	return registry.Errorf(registry.CodeUnavailable, "%s answered %d %s, which is no answer to a request for a file; check the address and the proxy", host, code, http.StatusText(code))
}

func wrong(format string, args ...any) error {
	return &RetryError{Err: &wrongAnswer{registry.Errorf(registry.CodeUnavailable, format, args...)}}
}

// drain reads the rest of a short answer, so that its connection can be used again, and closes it.
func drain(resp *http.Response) {
	_, _ = io.CopyN(io.Discard, resp.Body, 16<<10) // whatever happens, the answer is not needed any more
	resp.Body.Close()
}

func isPage(h http.Header) bool {
	t := strings.ToLower(h.Get("Content-Type"))
	return strings.HasPrefix(t, "text/html") || strings.HasPrefix(t, "application/xhtml")
}

func short(s string) string { return s[:min(len(s), 80)] }

var rangeHeader = regexp.MustCompile(`^bytes (?:(\d{1,18})-(\d{1,18})|\*)/(\d{1,18}|\*)$`)

// contentRange reads a Content-Range header. size is -1 when it does not say; first and last are -1 for an answer 416.
func contentRange(s string) (first, last, size int64, ok bool) {
	m := rangeHeader.FindStringSubmatch(strings.TrimSpace(s))
	if m == nil {
		return -1, -1, -1, false
	}
	number := func(s string) int64 {
		n, err := strconv.ParseInt(s, 10, 64)
		if err != nil {
			return -1
		}
		return n
	}
	first, last, size = number(m[1]), number(m[2]), number(m[3])
	return first, last, size, last < size || size < 0
}

// ETag returns the ETag of an answer without quotes and the mark of a weak one; "" when it has none.
func ETag(h http.Header) string {
	return strings.Trim(strings.TrimPrefix(h.Get("ETag"), "W/"), `"`)
}

// isWrong reports whether an error is an answer that cannot be part of the file.
func isWrong(err error) bool {
	var w *wrongAnswer
	return errors.As(err, &w)
}
