package auth

import (
	"crypto/rand"
	"crypto/sha256"
	"hash/crc32"
	"net/http"
	"strings"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// The form of a token that we make: a prefix that secret scanners can find, 32 random characters (190 bits) and six
// of checksum, so that a token that was cut off or mistyped can be told from one that was taken back.
const (
	tokenPrefix   = "llmm_"
	tokenRandom   = 32
	tokenChecksum = 6
	tokenLength   = len(tokenPrefix) + tokenRandom + tokenChecksum

	// MinTokenLength and MaxTokenLength bound a token that was chosen by somebody else (LLMM_ADMIN_TOKEN), in bytes.
	MinTokenLength = 20
	MaxTokenLength = 512
)

const base62 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"

func newTokenSecret() string {
	out := make([]byte, 0, tokenLength)
	out = append(out, tokenPrefix...)
	var buf [64]byte
	for len(out) < len(tokenPrefix)+tokenRandom {
		_, _ = rand.Read(buf[:]) // never fails
		for _, b := range buf {
			// 248 is the largest multiple of 62 in a byte: what is above would make some characters likelier.
			if b < 248 && len(out) < len(tokenPrefix)+tokenRandom {
				out = append(out, base62[b%62])
			}
		}
	}
	return string(append(out, checksum(string(out[len(tokenPrefix):]))...))
}

func checksum(random string) string {
	sum := crc32.ChecksumIEEE([]byte(random))
	out := make([]byte, tokenChecksum)
	for i := tokenChecksum - 1; i >= 0; i-- {
		out[i] = base62[sum%62]
		sum /= 62
	}
	return string(out)
}

// ours reports whether s has the form of a token that we made, checksum included.
func ours(s string) bool {
	if len(s) != tokenLength || !strings.HasPrefix(s, tokenPrefix) {
		return false
	}
	body := s[len(tokenPrefix):]
	for i := range len(body) {
		if strings.IndexByte(base62, body[i]) < 0 {
			return false
		}
	}
	return checksum(body[:tokenRandom]) == body[tokenRandom:]
}

// tokenHash is what is stored of a token. A fast hash is enough: what is hashed is random and long, not chosen by a
// person; LLMM_ADMIN_TOKEN is the exception and the operator is told to make it random.
func tokenHash(secret string) [sha256.Size]byte { return sha256.Sum256([]byte(secret)) }

// displayPrefix is kept in the clear to tell tokens apart.
func displayPrefix(secret string) string {
	if ours(secret) {
		return secret[:len(tokenPrefix)+6]
	}
	return secret[:4]
}

// bearer returns the token in the Authorization header, "" if there is none. Other schemes are not ours: a proxy in
// front may use Basic for itself. CodeUnauthenticated if the header says Bearer and holds no possible token.
func bearer(r *http.Request) (string, error) {
	values := r.Header.Values("Authorization")
	if len(values) == 0 {
		return "", nil
	}
	if len(values) > 1 {
		return "", registry.Errorf(registry.CodeUnauthenticated, "the request has %d Authorization headers; send one", len(values))
	}
	scheme, secret, _ := strings.Cut(strings.TrimSpace(values[0]), " ")
	if !strings.EqualFold(scheme, "Bearer") {
		return "", nil
	}
	secret = strings.TrimSpace(secret)
	if !possibleToken(secret) {
		return "", registry.Errorf(registry.CodeUnauthenticated, "the Authorization header holds no API token; send it as \"Authorization: Bearer llmm_…\"")
	}
	return secret, nil
}

// possibleToken reports whether s may be a token at all: printable ASCII without spaces, of a length in the limits.
func possibleToken(s string) bool {
	if len(s) < MinTokenLength || len(s) > MaxTokenLength {
		return false
	}
	for i := range len(s) {
		if s[i] <= ' ' || s[i] > '~' {
			return false
		}
	}
	return true
}
