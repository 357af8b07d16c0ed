// Package s3test runs a real S3 server for tests: Versity's gateway in front of a folder. It is no module that this one
// depends on; scripts/s3-tool builds it into the user's cache.
package s3test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
)

// version is what scripts/s3-tool builds.
const version = "1.8.0"

// The root account of every server, and its region.
const (
	AccessKey = "AKIATESTTESTTEST"
	SecretKey = "a-secret-that-must-never-be-shown"
	Region    = "eu-test-1"
)

// patience bounds the start and the end of the server; nothing waits for it otherwise.
const patience = time.Minute

// Server is a running S3 server.
type Server struct {
	URL    string // http://127.0.0.1:port
	Folder string // where its buckets are folders
	Client *minio.Client

	path string
	cmd  *exec.Cmd
	done chan struct{}
	log  log
}

// Find returns the server's program: LLMM_TEST_S3, or the one that scripts/s3-tool made. Without one the test fails and
// says what makes it.
func Find(t testing.TB) string {
	t.Helper()
	if path := os.Getenv("LLMM_TEST_S3"); path != "" {
		return path
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(cache, "llmm", "tools", "s3", version, "versitygw")
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("%s is missing: run scripts/s3-tool (or make test, which does), or set LLMM_TEST_S3", path)
	}
	return path
}

// Start runs a server until the test ends.
func Start(t testing.TB) *Server {
	t.Helper()
	// The server cannot tell a port that the system chose; another process may take one that was free a moment ago.
	for try := 1; ; try++ {
		s, err := start(t)
		if err == nil {
			return s
		}
		if try == 3 {
			t.Fatal(err)
		}
	}
}

func start(t testing.TB) (*Server, error) {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	at := l.Addr().String()
	l.Close()
	buckets, versions, accounts := t.TempDir(), t.TempDir(), t.TempDir()
	s := &Server{URL: "http://" + at, Folder: buckets, path: Find(t), done: make(chan struct{})}
	s.cmd = exec.CommandContext(context.WithoutCancel(t.Context()), s.path, "--port", at, "--region", Region, "--iam-dir", accounts, "--keep-alive", "--quiet", "posix", "--versioning-dir", versions, buckets)
	s.cmd.Env = append(os.Environ(), "ROOT_ACCESS_KEY_ID="+AccessKey, "ROOT_SECRET_ACCESS_KEY="+SecretKey, "GOMAXPROCS=2")
	s.cmd.Stdout, s.cmd.Stderr = &s.log, &s.log
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := s.cmd.Start(); err != nil {
		t.Fatalf("%s does not start: %v", s.path, err)
	}
	go func() {
		defer close(s.done)
		_ = s.cmd.Wait() // however it ended
	}()
	t.Cleanup(func() { s.Stop(t) })
	if err := s.listening(t.Context(), at); err != nil {
		return nil, err
	}
	// Each request on a connection of its own: the server leaves the end of an empty body unread, and takes it for the
	// next request.
	s.Client, err = minio.New(at, &minio.Options{
		Creds: credentials.NewStaticV4(AccessKey, SecretKey, ""), Region: Region, BucketLookup: minio.BucketLookupPath,
		Transport: &http.Transport{DisableKeepAlives: true},
	})
	return s, err
}

func (s *Server) listening(ctx context.Context, at string) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	again := time.NewTicker(20 * time.Millisecond)
	defer again.Stop()
	for {
		conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", at)
		if err == nil {
			return conn.Close()
		}
		select {
		case <-again.C:
		case <-s.done:
			return fmt.Errorf("%s ended at once:\n%s", s.path, s.log.String())
		case <-ctx.Done():
			return fmt.Errorf("%s does not listen:\n%s", s.path, s.log.String())
		}
	}
}

// Stop ends the server.
func (s *Server) Stop(t testing.TB) {
	t.Helper()
	_ = s.cmd.Process.Kill() // it may have ended
	select {
	case <-s.done:
	case <-time.After(patience):
		t.Errorf("%s does not end", s.path)
	}
}

var buckets atomic.Int64

// Bucket makes a bucket, with versions of its objects or without.
func (s *Server) Bucket(t testing.TB, versioned bool) string {
	t.Helper()
	name := fmt.Sprintf("bucket-%d", buckets.Add(1))
	check(t, s.Client.MakeBucket(t.Context(), name, minio.MakeBucketOptions{Region: Region}))
	if versioned {
		check(t, s.Client.EnableVersioning(t.Context(), name))
	}
	return name
}

// Put uploads an object in one part.
func (s *Server) Put(t testing.TB, bucket, key string, content []byte) {
	t.Helper()
	s.PutWith(t, bucket, key, content, minio.PutObjectOptions{DisableMultipart: true})
}

// PutWith uploads an object.
func (s *Server) PutWith(t testing.TB, bucket, key string, content []byte, o minio.PutObjectOptions) {
	t.Helper()
	_, err := s.Client.PutObject(t.Context(), bucket, key, bytes.NewReader(content), int64(len(content)), o)
	check(t, err)
}

// PutParts uploads an object in parts of a size with a sum for each, of which the service keeps the sum of the sums.
func (s *Server) PutParts(t testing.TB, bucket, key string, content []byte, size int, kind minio.ChecksumType) {
	t.Helper()
	core := minio.Core{Client: s.Client}
	id, err := core.NewMultipartUpload(t.Context(), bucket, key, minio.PutObjectOptions{UserMetadata: map[string]string{
		"X-Amz-Checksum-Algorithm": kind.String(), "X-Amz-Checksum-Type": "COMPOSITE"}})
	check(t, err)
	var parts []minio.CompletePart
	for n := 1; len(content) > 0; n++ {
		part := content[:min(size, len(content))]
		content = content[len(part):]
		sum := kind.ChecksumBytes(part)
		header := http.Header{}
		header.Set(kind.Key(), sum.Encoded())
		got, err := core.PutObjectPart(t.Context(), bucket, key, id, n, bytes.NewReader(part), int64(len(part)), minio.PutObjectPartOptions{CustomHeader: header})
		check(t, err)
		done := minio.CompletePart{PartNumber: n, ETag: got.ETag}
		if kind == minio.ChecksumSHA256 {
			done.ChecksumSHA256 = sum.Encoded()
		} else {
			done.ChecksumCRC32C = sum.Encoded()
		}
		parts = append(parts, done)
	}
	_, err = core.CompleteMultipartUpload(t.Context(), bucket, key, id, parts, minio.PutObjectOptions{})
	check(t, err)
}

// PutSummed uploads an object with its SHA-256, which the service then keeps and tells.
func (s *Server) PutSummed(t testing.TB, bucket, key string, content []byte) {
	t.Helper()
	sum := sha256.Sum256(content)
	header := http.Header{"X-Amz-Checksum-Sha256": {base64.StdEncoding.EncodeToString(sum[:])}}
	u, err := s.Client.PresignHeader(t.Context(), http.MethodPut, bucket, key, patience, url.Values{}, header)
	check(t, err)
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPut, u.String(), bytes.NewReader(content))
	check(t, err)
	req.Header = header
	req.Close = true
	resp, err := http.DefaultClient.Do(req)
	check(t, err)
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		b, _ := io.ReadAll(resp.Body)
		t.Fatalf("the upload was answered %s: %s", resp.Status, b)
	}
}

// Remove deletes every object whose key begins with prefix.
func (s *Server) Remove(t testing.TB, bucket, prefix string) {
	t.Helper()
	for o := range s.Client.ListObjectsIter(t.Context(), bucket, minio.ListObjectsOptions{Prefix: prefix, Recursive: true}) {
		check(t, o.Err)
		check(t, s.Client.RemoveObject(t.Context(), bucket, o.Key, minio.RemoveObjectOptions{}))
	}
}

// Account makes an account that may do nothing yet, and returns its secret key.
func (s *Server) Account(t testing.TB, access string) (secret string) {
	t.Helper()
	secret = "secret-of-" + access
	cmd := exec.CommandContext(t.Context(), s.path, "admin", "--access", AccessKey, "--secret", SecretKey, "--region", Region, "--endpoint-url", s.URL,
		"create-user", "--access", access, "--secret", secret, "--role", "user")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("the account cannot be made: %v\n%s", err, out)
	}
	return secret
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// log keeps the beginning of what the server wrote.
type log struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.text.Len() < 64<<10 {
		l.text.Write(p)
	}
	return len(p), nil
}

func (l *log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

var errFault = errors.New("a fault on purpose")

var _ io.Writer = (*log)(nil)
