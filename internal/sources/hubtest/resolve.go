package hubtest

import (
	"compress/gzip"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"path"
	"strconv"
	"strings"
	"time"
)

// resolve answers for one file of a revision: a large one is a redirect to the second host, a small one a redirect to
// the address under which the Hub lets its own cache keep it.
func (h *Hub) resolve(p *reply, id, revision, name string) {
	repo, c, fail := h.files(p, id, revision)
	if fail != nil {
		fail.write(p, false)
		return
	}
	if repo == nil {
		return // redirected
	}
	p.Header().Set("X-Repo-Commit", c.sha)
	f, ok := c.named[name]
	if !ok {
		noEntry.write(p, false)
		return
	}
	h.served.note(func() { p.q.File = id + "/" + f.path })
	p.Header().Set("X-Linked-Size", strconv.FormatInt(f.size+h.offBy(p), 10))
	p.Header().Set("X-Linked-ETag", `"`+h.told(p, f)+`"`)
	p.Header().Set("Accept-Ranges", "bytes")
	p.Header().Set("Content-Disposition", disposition(f.path))
	h.offerXet(p.Header(), id, c.sha, f)
	var to string
	status := http.StatusTemporaryRedirect
	if f.lfs() {
		status = http.StatusFound
		to = h.sign(p, id, f)
	} else {
		p.Header().Set("ETag", `"`+f.oid+`"`)
		from := "/" + id + "/resolve/" + url.PathEscape(revision) + "/" + escape(f.path)
		to = "/api/resolve-cache/models/" + id + "/" + c.sha + "/" + escape(f.path) + "?" + url.QueryEscape(from) + "=&etag=" + url.QueryEscape(`"`+f.oid+`"`)
	}
	p.Header().Set("Location", to)
	say(p, status, "text/plain; charset=utf-8", http.StatusText(status)+". Redirecting to "+to)
}

// cached answers with a small file.
func (h *Hub) cached(p *reply, id, sha, name string) {
	repo, c, fail := h.files(p, id, sha)
	if fail != nil {
		fail.write(p, false)
		return
	}
	if repo == nil {
		return
	}
	p.Header().Set("X-Repo-Commit", c.sha)
	f, ok := c.named[name]
	if !ok {
		noEntry.write(p, false)
		return
	}
	h.served.note(func() { p.q.File = id + "/" + f.path })
	p.Header().Set("X-Linked-Size", strconv.FormatInt(f.size+h.offBy(p), 10))
	p.Header().Set("Content-Disposition", disposition(f.path))
	p.Header().Set("Vary", "Accept-Encoding")
	if compressible(f) && strings.Contains(p.r.Header.Get("Accept-Encoding"), "gzip") && p.r.Header.Get("Range") == "" {
		h.compressed(p, f)
		return
	}
	p.sendFile(f, "text/plain; charset=utf-8", f.oid)
}

// compressible tells which files the Hub compresses for whom can read that.
func compressible(f *file) bool {
	switch path.Ext(f.path) {
	case ".json", ".txt", ".md", ".jinja", ".py":
		return f.size >= 1024
	}
	return false
}

// compressed answers as a proxy does that compresses on the fly: no length, and the tag of something that is only
// equivalent.
func (h *Hub) compressed(p *reply, f *file) {
	in, err := f.open()
	if err != nil {
		h.log.Error("a file cannot be served", "file", p.q.File, "error", err)
		noEntry.write(p, false)
		return
	}
	defer in.Close()
	p.Header().Set("Content-Type", "text/plain; charset=utf-8")
	p.Header().Set("Content-Encoding", "gzip")
	p.Header().Set("ETag", `W/"`+f.oid+`"`)
	p.WriteHeader(http.StatusOK)
	if p.r.Method == http.MethodHead {
		return
	}
	zip := gzip.NewWriter(p.ResponseWriter)
	p.count(f.size)
	n, err := io.Copy(zip, in)
	p.count(n - f.size)
	if err == nil {
		err = zip.Close()
	}
	if err != nil {
		panic(http.ErrAbortHandler) // the client sees that it is not whole
	}
}

func disposition(name string) string {
	base := path.Base(name)
	return fmt.Sprintf("inline; filename*=UTF-8''%s; filename=%q;", url.PathEscape(base), base)
}

// offBy is how much a fault lets the size be wrong.
func (h *Hub) offBy(p *reply) int64 {
	if f := p.find(sizes); f != nil {
		return f.Delta
	}
	return 0
}

// told is what the Hub says names the file.
func (h *Hub) told(p *reply, f *file) string {
	if f.lfs() && p.find(etags) != nil {
		return lie(f.sha)
	}
	return f.etag()
}

func signingKey(seed uint64) []byte {
	sum := sha256.Sum256(binary.BigEndian.AppendUint64([]byte("hubtest signs "), seed))
	return sum[:]
}

// sign returns the address of a large file at the second host, good until it expires.
func (h *Hub) sign(p *reply, id string, f *file) string {
	until := h.o.Now().Add(h.o.Expiry)
	if p.find(signings) != nil {
		until = h.o.Now().Add(-time.Minute)
	}
	where := "/repos/" + id + "/" + f.sha
	q := url.Values{}
	q.Set("response-content-disposition", disposition(f.path))
	q.Set("response-content-type", "application/octet-stream")
	q.Set("Expires", strconv.FormatInt(until.Unix(), 10))
	q.Set("Signature", h.signature(where, q.Get("Expires"), q.Get("response-content-disposition")))
	q.Set("Key-Pair-Id", "HUBTEST")
	return h.CDN + where + "?" + q.Encode()
}

func (h *Hub) signature(parts ...string) string {
	mac := hmac.New(sha256.New, h.key)
	mac.Write([]byte(strings.Join(parts, "\n")))
	return base64.RawURLEncoding.EncodeToString(mac.Sum(nil))
}

// cdnHandler is the second host. It knows signed addresses and nothing else: no tokens, no repositories, no API.
func (h *Hub) cdnHandler() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		q := h.served.begin(r, true, h.o.Now())
		defer h.served.end(q)
		p := &reply{ResponseWriter: w, hub: h, r: r, q: q}
		if h.o.Xet && h.xet(p) {
			return
		}
		parts := strings.Split(strings.TrimPrefix(r.URL.Path, "/repos/"), "/")
		id, sha := strings.Join(parts[:len(parts)-1], "/"), parts[len(parts)-1]
		f := h.object(id, sha)
		if f != nil {
			h.served.note(func() { q.File = id + "/" + f.path })
		}
		if p.spoil() {
			return
		}
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			say(p, http.StatusMethodNotAllowed, "text/plain", "Method Not Allowed")
			return
		}
		query := r.URL.Query()
		until, err := strconv.ParseInt(query.Get("Expires"), 10, 64)
		want := h.signature(r.URL.Path, query.Get("Expires"), query.Get("response-content-disposition"))
		switch {
		case err != nil || !hmac.Equal([]byte(want), []byte(query.Get("Signature"))):
			denied(p, "Access denied")
		case h.o.Now().Unix() >= until:
			denied(p, expired)
		case f == nil:
			say(p, http.StatusNotFound, "application/xml", `<?xml version="1.0" encoding="UTF-8"?><Error><Code>NoSuchKey</Code></Error>`)
		default:
			p.Header().Set("Content-Disposition", query.Get("response-content-disposition"))
			p.sendFile(f, "application/octet-stream", storageTag(f))
		}
	})
}

func denied(w http.ResponseWriter, why string) {
	say(w, http.StatusForbidden, "application/xml", `<?xml version="1.0" encoding="UTF-8"?><Error><Code>AccessDenied</Code><Message>`+why+`</Message></Error>`)
}

// storageTag is how the storage behind the second host names a large file: by something of its own that is not the
// file's SHA-256, so that a client which compares the two is found out.
func storageTag(f *file) string {
	sum := sha256.Sum256([]byte("storage " + f.sha))
	return hex.EncodeToString(sum[:16]) + "-" + strconv.FormatInt(f.size/(64<<20)+1, 10)
}

// object returns the file of a repository that has this SHA-256.
func (h *Hub) object(id, sha string) *file {
	h.mu.Lock()
	r := h.repos[id]
	h.mu.Unlock()
	if r == nil {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.objects[sha]
}

func escape(name string) string {
	parts := strings.Split(name, "/")
	for i, p := range parts {
		parts[i] = url.PathEscape(p)
	}
	return strings.Join(parts, "/")
}
