package huggingface

import (
	"net/http"
	"net/url"
)

// Accepts reports whether a listing with one such file is believed.
func Accepts(name, hash string, size int64) bool {
	return tree{}.add("org/name", []entry{{Path: name, Type: "file", Size: size, OID: hash}}) == nil
}

// DecodeTree is decodeTree.
func DecodeTree(raw []byte) ([]byte, bool) {
	t, ok := decodeTree(raw)
	if !ok {
		return nil, false
	}
	again, err := encodeTree(t)
	return again, err == nil
}

// GuardedTransport is guardedTransport.
func GuardedTransport(endpoint *url.URL) *http.Transport {
	t, ok := guardedTransport(endpoint).(*http.Transport)
	if !ok {
		panic("the transport is another one now")
	}
	return t
}

// AboutTokenizer is aboutTokenizer.
func AboutTokenizer(err error) error { return aboutTokenizer(err) }

// Environment returns what New reads from the environment.
func Environment(getenv func(string) string) (cache, endpoint, token string, offline bool) {
	s, err := New(Options{Getenv: getenv})
	if err != nil {
		return err.Error(), "", "", false
	}
	return s.cache, s.endpoint.String(), s.token(), s.offline
}

// SetLarge makes files above so many bytes large ones.
func SetLarge(s *Source, bytes int64) { s.large = bytes }

// NotedFiles are the files of a note that is believed.
func NotedFiles(raw []byte) []string {
	n, ok := decodeNote(raw)
	if !ok {
		return nil
	}
	return names(n.Files)
}
