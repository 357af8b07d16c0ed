package huggingface

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/industriverse/llmmodelmanager/internal/netaddr"
	"github.com/industriverse/llmmodelmanager/internal/registry"
	"github.com/industriverse/llmmodelmanager/internal/sources/fetch"
	"github.com/industriverse/llmmodelmanager/internal/sources/headers"
)

// guardedTransport refuses addresses of this machine and of private networks that a redirect leads to, unless the Hub
// itself is at such an address: then its second host is, too.
func guardedTransport(endpoint *url.URL) http.RoundTripper {
	own := net.JoinHostPort(endpoint.Hostname(), port(endpoint))
	private := sync.OnceValue(func() bool { return isPrivate(endpoint.Hostname()) })
	return fetch.Transport(fetch.TransportOptions{AllowPrivate: func(hostport string) bool {
		return strings.EqualFold(hostport, own) || private()
	}})
}

func isPrivate(host string) bool {
	if ip, err := netip.ParseAddr(host); err == nil {
		return !netaddr.Public(ip)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	addresses, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err != nil || len(addresses) == 0 {
		return false
	}
	for _, ip := range addresses {
		if netaddr.Public(ip) {
			return false
		}
	}
	return true
}

// remote is where the bytes of a file of a commit are. Small files come from the Hub itself. Those in LFS come from
// another host, whose signed address a HEAD finds out: without it every range would ask the Hub first, which counts
// those requests.
func (s *Source) remote(l *look, commit string, f registry.File) *fetch.HTTP {
	address := s.file(l.id, commit, f.Path)
	auth := func() http.Header {
		h := http.Header{"User-Agent": {userAgent}}
		if l.token != "" {
			h.Set("Authorization", "Bearer "+l.token)
		}
		return h
	}
	r := &fetch.HTTP{
		Client: s.client,
		Explain: func(resp *http.Response) error {
			if resp.StatusCode == http.StatusBadRequest && f.Size > s.large && !s.sameHost(resp.Request.URL) {
				return s.tooLarge(l, f)
			}
			return final(s.explain(resp, l, f.Path))
		},
	}
	if f.SHA256 == "" {
		r.Locate = func(context.Context, bool) (string, http.Header, error) { return address.String(), auth(), nil }
		r.Tag = hubTag
		return r
	}
	r.Locate = func(ctx context.Context, _ bool) (string, http.Header, error) {
		to, err := s.locate(ctx, l, commit, f, address)
		if err != nil {
			return "", nil, err
		}
		if s.sameHost(to) {
			return to.String(), auth(), nil
		}
		return to.String(), http.Header{"User-Agent": {userAgent}}, nil
	}
	return r
}

const userAgent = "llmm; huggingface"

// hubTag is what the Hub says a file's content is; "" for an answer of another host.
func hubTag(resp *http.Response) string {
	tag := resp.Header.Get("X-Linked-Etag")
	if tag == "" && resp.Header.Get("X-Repo-Commit") != "" {
		tag = resp.Header.Get("ETag")
	}
	tag = strings.Trim(strings.TrimPrefix(tag, "W/"), `"`)
	if !hash40.MatchString(tag) && !hash64.MatchString(tag) {
		return "" // a mirror that makes tags of its own; the hash of the content decides
	}
	return tag
}

// locate asks the Hub where a large file is, and holds what it says of it against the listing.
func (s *Source) locate(ctx context.Context, l *look, commit string, f registry.File, address *url.URL) (*url.URL, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodHead, address.String(), nil)
	if err != nil {
		return nil, problem(registry.CodeInvalid, "%s can be no file of the Hub", clip(f.Path))
	}
	s.dress(req, l.token)
	req.Header.Set("Accept-Encoding", "identity") // else the length may be that of a compressed answer
	stay := *s.client
	stay.CheckRedirect = func(next *http.Request, via []*http.Request) error {
		if err := s.checkRedirect(next, via); err != nil {
			return err
		}
		if !s.sameHost(next.URL) {
			return http.ErrUseLastResponse
		}
		return nil
	}
	resp, err := stay.Do(req)
	if resp != nil {
		defer resp.Body.Close()
	}
	if err != nil {
		if redirectFault(err) != nil {
			return nil, final(s.unreachable(ctx, l, err))
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, fetch.Transient(s.endpoint.Host, err)
	}
	moved := resp.StatusCode >= 300 && resp.StatusCode < 400
	if resp.StatusCode != http.StatusOK && !moved {
		if err := fetch.StatusError(resp); err != nil {
			return nil, err
		}
		return nil, final(s.explain(resp, l, f.Path))
	}
	if err := s.agrees(resp, commit, f, moved); err != nil {
		return nil, err
	}
	if !moved {
		return resp.Request.URL, nil
	}
	to, err := resp.Request.URL.Parse(resp.Header.Get("Location"))
	if err != nil || to.Hostname() == "" {
		return nil, final(notAHub(s.endpoint, "it redirects to no address"))
	}
	return to, nil
}

// agrees checks that the answer about a file is the Hub's, and of the file that was listed.
func (s *Source) agrees(resp *http.Response, commit string, f registry.File, moved bool) error {
	at := resp.Header.Get("X-Repo-Commit")
	if at == "" {
		return final(notAHub(s.endpoint, "its answer about "+clip(f.Path)+" lacks X-Repo-Commit"))
	}
	if at != commit {
		return headers.Corrupt("Look the model up again", "%s is of commit %s where %s was asked for", clip(f.Path), clip(at), commit)
	}
	if tag := hubTag(resp); tag != "" && tag != f.ETag {
		return headers.Corrupt("Look the model up again; if it stays so, the Hub or a mirror in between is at fault",
			"the Hub contradicts itself about %s: its listing says %s, its answer %s", clip(f.Path), f.ETag, tag)
	}
	size := int64(-1)
	if n, err := strconv.ParseInt(resp.Header.Get("X-Linked-Size"), 10, 64); err == nil {
		size = n
	} else if !moved { // the length of a redirect is that of its own text
		size = resp.ContentLength
	}
	if size >= 0 && size != f.Size {
		return headers.Corrupt("Look the model up again; if it stays so, the Hub or a mirror in between is at fault",
			"the Hub contradicts itself about %s: its listing says %d bytes, its answer %d", clip(f.Path), f.Size, size)
	}
	return nil
}

// final takes off an error what only this package understands.
func final(err error) error {
	var p passing
	if errors.As(err, &p) {
		err = p.error
	}
	var n *noRevision
	if errors.As(err, &n) {
		return n.err
	}
	return err
}

// opener opens the files of a commit to read their beginnings: from the cache where they are there, else by ranges.
func (s *Source) opener(ctx context.Context, l *look, c *store, commit string, files []registry.File) headers.Opener {
	byName := make(map[string]registry.File, len(files))
	for _, f := range files {
		byName[f.Path] = f
	}
	return func(name string) (headers.File, error) {
		f, ok := byName[name]
		if !ok {
			return nil, headers.Missing("Look the model up again", "%s is not there", clip(name))
		}
		if c != nil {
			if file, err := c.repo(l.folder()).open(commit, f); err == nil {
				return file, nil
			}
		}
		if commit == "" || l.offline {
			return nil, headers.Missing("Fetch it while the Hub can be reached", "%s is not in the cache", clip(name))
		}
		return &remoteFile{RangeReader: fetch.ReaderAt(l.counted(ctx), s.remote(l, commit, f), f.Size, readerOptions), look: l}, nil
	}
}

// Somebody waits for what is read so, so that trouble is told after seconds.
var readerOptions = fetch.ReaderOptions{First: 16 << 10, Tries: 4, Patience: 10 * time.Second}

// remoteFile is a file of the Hub that is read by ranges. What was read is added up when it is closed.
type remoteFile struct {
	*fetch.RangeReader
	look *look
}

// Close implements headers.File.
func (r *remoteFile) Close() error {
	r.look.bytes.Add(r.Bytes())
	return nil
}
