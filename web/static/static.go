// Package static holds the console's stylesheet, scripts and icons, embedded in the binary. Every file is served
// under a name that carries a hash of its content, so that browsers may keep it for ever and a new release is
// seen at once.
package static

import (
	"bytes"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"io/fs"
	"net/http"
	"path"
	"strings"
	"time"
)

//go:embed console.css icon.svg theme.js console.js chat.js try.js vendor/*.js
var files embed.FS

// Prefix is where Handler is mounted.
const Prefix = "/static/"

type asset struct {
	name, kind, hash string
	body             []byte
}

// assets are by plain name ("console.css") and by hashed name ("console.1a2b3c4d5e6f.css").
var byName, byHashed = func() (map[string]*asset, map[string]*asset) {
	names, hashed := map[string]*asset{}, map[string]*asset{}
	kinds := map[string]string{".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".svg": "image/svg+xml"}
	err := fs.WalkDir(files, ".", func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		body, err := files.ReadFile(p)
		if err != nil {
			return err
		}
		sum := sha256.Sum256(body)
		a := &asset{name: p, kind: kinds[path.Ext(p)], hash: hex.EncodeToString(sum[:6]), body: body}
		names[p] = a
		hashed[hashedName(a)] = a
		return nil
	})
	if err != nil {
		panic("static: " + err.Error()) // an embedded file cannot fail to read
	}
	return names, hashed
}()

func hashedName(a *asset) string {
	ext := path.Ext(a.name)
	return strings.TrimSuffix(a.name, ext) + "." + a.hash + ext
}

// URL returns the address of the named file with its hash in it: URL("console.css") is
// "/static/console.1a2b3c4d5e6f.css". A name that is not embedded comes back without a hash, and is answered 404.
func URL(name string) string {
	if a, ok := byName[name]; ok {
		return Prefix + hashedName(a)
	}
	return Prefix + name
}

// Handler serves the files under Prefix. Hashed names are immutable for a year; plain names are answered too (for
// /static/icon.svg and the like) and are revalidated.
func Handler() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		name := strings.TrimPrefix(r.URL.Path, Prefix)
		a, ok := byHashed[name]
		cache := "public, max-age=31536000, immutable"
		if !ok {
			a, ok = byName[name]
			cache = "no-cache"
		}
		if !ok {
			http.NotFound(w, r)
			return
		}
		h := w.Header()
		h.Set("Content-Type", a.kind)
		h.Set("Cache-Control", cache)
		h.Set("ETag", `"`+a.hash+`"`)
		h.Set("X-Content-Type-Options", "nosniff")
		http.ServeContent(w, r, a.name, time.Time{}, bytes.NewReader(a.body))
	})
}

// CSP is the Content-Security-Policy under which the console works. There is no inline script, no inline style and
// no eval anywhere in it; bars are SVG with plain attributes for that reason.
const CSP = "default-src 'self'; img-src 'self' data:; object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
