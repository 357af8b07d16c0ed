package hubtest

import (
	"bufio"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Xet is the Hub's newer way to hand out large files: in chunks, a thousand of which make a xorb. The second host plays
// the service that knows which xorbs make a file, and the storage behind it. Chunks are all of one size, not cut by
// content, and not compressed; nothing is shared between files. The names of files and xorbs are of the right form but
// are not the trees of hashes that they are on the Hub. See hub-docs, docs/xet.
const (
	chunkSize   = 64 << 10
	chunkHeader = 8
	xorbChunks  = 1008 // with their headers they stay below 64 MiB
	xorbSize    = xorbChunks * chunkSize
	xetPath     = "/xet"
	xorbPath    = "/xorbs/"
)

// xetHash names a large file to Xet.
func xetHash(sha string) string { return derive("xet file", sha, 0) }

func derive(what, sha string, n int64) string {
	sum := sha256.Sum256(fmt.Appendf(nil, "%s %s %d", what, sha, n))
	return hex.EncodeToString(sum[:])
}

// offerXet sets the headers by which a client learns that it may use Xet.
func (h *Hub) offerXet(header http.Header, id, revision string, f *file) {
	if !h.o.Xet || !f.lfs() {
		return
	}
	header.Set("X-Xet-Hash", xetHash(f.sha))
	header.Set("Link", fmt.Sprintf(`<%s/api/models/%s/xet-read-token/%s>; rel="xet-auth"`, h.URL, id, revision))
}

// xet answers what is asked of Xet; false when it is something else.
func (h *Hub) xet(p *reply) bool {
	parts := strings.Split(strings.TrimPrefix(p.r.URL.Path, "/"), "/")
	service := len(parts) == 4 && "/"+parts[0] == xetPath && parts[2] == "reconstructions" && (parts[1] == "v1" || parts[1] == "v2")
	storage := len(parts) == 3 && "/"+parts[0]+"/" == xorbPath
	if !service && !storage || p.r.Method != http.MethodGet {
		return false
	}
	if id, f := h.xetFile(parts[len(parts)-1]); service && f != nil {
		h.served.note(func() { p.q.File = id + "/" + f.path })
	}
	if p.spoil() {
		return true
	}
	if service {
		h.reconstruction(p, parts[1] == "v2", parts[3])
	} else {
		h.xorb(p, parts[1], parts[2])
	}
	return true
}

// xetToken answers with where the service is and a token for it.
func (h *Hub) xetToken(p *reply, id string) {
	until := strconv.FormatInt(h.o.Now().Add(h.o.Expiry).Unix(), 10)
	token := "xet_" + until + "_" + h.signature("xet", until)
	p.Header().Set("X-Xet-Cas-Url", h.CDN+xetPath)
	p.Header().Set("X-Xet-Access-Token", token)
	p.Header().Set("X-Xet-Token-Expiration", until)
	exp, err := strconv.ParseInt(until, 10, 64)
	if err != nil {
		panic(err) // written above
	}
	h.log.Debug("a token for Xet", "repository", id)
	h.json(p, map[string]any{"casUrl": h.CDN + xetPath, "accessToken": token, "exp": exp})
}

func (h *Hub) xetAllowed(r *http.Request) bool {
	until, sum, ok := strings.Cut(strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer xet_"), "_")
	exp, err := strconv.ParseInt(until, 10, 64)
	return ok && err == nil && h.o.Now().Unix() < exp && hmac.Equal([]byte(sum), []byte(h.signature("xet", until)))
}

// xetFile returns the file of a name that xetHash gave, and the repository it was found in.
func (h *Hub) xetFile(hash string) (string, *file) {
	h.mu.Lock()
	repos := make([]*repository, 0, len(h.repos))
	for _, r := range h.repos {
		repos = append(repos, r)
	}
	h.mu.Unlock()
	for _, r := range repos {
		r.mu.Lock()
		f := r.objects[hash]
		r.mu.Unlock()
		if f != nil {
			return r.id, f
		}
	}
	return "", nil
}

type bounds struct {
	Start int64 `json:"start"`
	End   int64 `json:"end"`
}

type term struct {
	Hash     string `json:"hash"`
	Unpacked int64  `json:"unpacked_length"`
	Range    bounds `json:"range"` // of chunks, the end not included
}

// reconstruction answers which chunks of which xorbs make a file, or a range of it.
func (h *Hub) reconstruction(p *reply, second bool, hash string) {
	if !h.xetAllowed(p.r) {
		say(p, http.StatusUnauthorized, "application/json", `{"error":"unauthorized"}`)
		return
	}
	id, f := h.xetFile(hash)
	if f == nil {
		say(p, http.StatusNotFound, "application/json", `{"error":"not found"}`)
		return
	}
	first, last := int64(0), f.size-1
	if span := p.r.Header.Get("Range"); span != "" {
		if _, err := fmt.Sscanf(span, "bytes=%d-%d", &first, &last); err != nil {
			say(p, http.StatusBadRequest, "application/json", `{"error":"bad range"}`)
			return
		}
		if last = min(last, f.size-1); first < 0 || first > last {
			say(p, http.StatusRequestedRangeNotSatisfiable, "application/json", `{"error":"range not satisfiable"}`)
			return
		}
	}
	terms := []term{}
	v1, v2 := map[string]any{}, map[string]any{}
	for at := first / chunkSize * chunkSize; at <= last; {
		n := at / xorbSize
		base := n * xorbSize
		chunks := bounds{(at - base) / chunkSize, (min(last, base+xorbSize-1)-base)/chunkSize + 1}
		end := min(f.size, base+chunks.End*chunkSize)
		name := derive("xorb", f.sha, n)
		terms = append(terms, term{name, end - at, chunks})
		bytes := bounds{at - base + chunks.Start*chunkHeader, end - base + chunks.End*chunkHeader - 1}
		to := h.signXorb(id, f, n, bytes)
		v1[name] = []any{map[string]any{"range": chunks, "url": to, "url_range": bytes}}
		v2[name] = []any{map[string]any{"url": to, "ranges": []any{map[string]any{"chunks": chunks, "bytes": bytes}}}}
		at = end
	}
	out := map[string]any{"offset_into_first_range": first % chunkSize, "terms": terms}
	if second {
		out["xorbs"] = v2
	} else {
		out["fetch_info"] = v1
	}
	h.json(p, out)
}

// signXorb returns the address of some bytes of a xorb, good for exactly these and until it expires.
func (h *Hub) signXorb(id string, f *file, n int64, bytes bounds) string {
	until := h.o.Now().Add(h.o.Expiry)
	if h.faults.pick(signings, OnCDN, id+"/"+f.path) != nil {
		until = h.o.Now().Add(-time.Minute)
	}
	q := url.Values{}
	q.Set("Expires", strconv.FormatInt(until.Unix(), 10))
	q.Set("X-Xet-Signed-Range", fmt.Sprintf("bytes=%d-%d", bytes.Start, bytes.End))
	where := xorbPath + xetHash(f.sha) + "/" + strconv.FormatInt(n, 10)
	q.Set("Signature", h.signature(where, q.Get("Expires"), q.Get("X-Xet-Signed-Range")))
	return h.CDN + where + "?" + q.Encode()
}

// xorb answers with the bytes that were signed.
func (h *Hub) xorb(p *reply, hash, number string) {
	q := p.r.URL.Query()
	n, numberErr := strconv.ParseInt(number, 10, 64)
	until, err := strconv.ParseInt(q.Get("Expires"), 10, 64)
	want := h.signature(p.r.URL.Path, q.Get("Expires"), q.Get("X-Xet-Signed-Range"))
	id, f := h.xetFile(hash)
	switch {
	case errors.Join(err, numberErr) != nil || !hmac.Equal([]byte(want), []byte(q.Get("Signature"))) || q.Get("X-Xet-Signed-Range") != p.r.Header.Get("Range"):
		denied(p, "Access denied")
		return
	case h.o.Now().Unix() >= until:
		denied(p, expired)
		return
	case f == nil:
		say(p, http.StatusNotFound, "text/plain", "no such xorb")
		return
	}
	h.served.note(func() { p.q.File = id + "/" + f.path })
	x, err := h.packed(f, n)
	if err != nil {
		h.log.Error("a xorb cannot be served", "file", p.q.File, "error", err)
		say(p, http.StatusInternalServerError, "text/plain", "Internal Error")
		return
	}
	p.sendFile(x, "application/octet-stream", hash+"-"+number)
}

// packed returns a xorb of a file as a file of its own. It is written when it is first asked for, so that it leaves as
// files do, by the kernel.
func (h *Hub) packed(f *file, n int64) (*file, error) {
	name := filepath.Join(h.objects, "xorb-"+f.sha+"-"+strconv.FormatInt(n, 10))
	once, _ := h.packing.LoadOrStore(name, sync.OnceValues(func() (*file, error) {
		in, err := f.open()
		if err != nil {
			return nil, err
		}
		defer in.Close()
		if n < 0 || n*xorbSize >= f.size {
			return nil, fmt.Errorf("there is no xorb %d", n)
		}
		if _, err := in.Seek(n*xorbSize, io.SeekStart); err != nil {
			return nil, err
		}
		if err := pack(name, io.LimitReader(in, xorbSize)); err != nil {
			return nil, err
		}
		fi, err := os.Stat(name)
		if err != nil {
			return nil, err
		}
		return &file{path: f.path, size: fi.Size(), mod: fi.ModTime(), disk: name}, nil
	}))
	pack, ok := once.(func() (*file, error))
	if !ok {
		return nil, errors.New("not a xorb") // nothing else is stored there
	}
	return pack()
}

// pack writes chunks with their headers: version 0, length, no compression, length.
func pack(name string, in io.Reader) error {
	out, err := os.Create(name)
	if err != nil {
		return err
	}
	w := bufio.NewWriterSize(out, 1<<20)
	chunk := make([]byte, chunkSize)
	for {
		n, readErr := io.ReadFull(in, chunk)
		if n > 0 {
			size := []byte{byte(n), byte(n >> 8), byte(n >> 16)}
			header := append(append([]byte{0}, size...), append([]byte{0}, size...)...)
			// A failed write is told by Flush.
			_, _ = w.Write(header)
			_, _ = w.Write(chunk[:n])
		}
		if errors.Is(readErr, io.EOF) || errors.Is(readErr, io.ErrUnexpectedEOF) {
			return errors.Join(w.Flush(), out.Close())
		}
		if readErr != nil {
			return errors.Join(readErr, out.Close())
		}
	}
}

// packAll packs every xorb of a repository, so that no client waits for it.
func (h *Hub) packAll(r *repository) error {
	r.mu.Lock()
	files := map[string]*file{}
	for _, f := range r.objects {
		files[f.sha] = f
	}
	r.mu.Unlock()
	for _, f := range files {
		for n := range (f.size + xorbSize - 1) / xorbSize {
			if _, err := h.packed(f, n); err != nil {
				return err
			}
		}
	}
	return nil
}
