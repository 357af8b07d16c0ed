package process

import (
	"bytes"
	"errors"
	"io"
	"log/slog"
	"os"
	"regexp"
	"strings"
	"time"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// DefaultMaxLog is how large an engine's log may grow, in bytes. keepLog of it survives in LOG.1 when it is cut.
const (
	DefaultMaxLog = 64 << 20
	keepLog       = 4 << 20
	guardEvery    = 200 * time.Millisecond
	maxLine       = 16 << 10 // bytes of one line that are looked at
	maxRead       = 1 << 20  // bytes that a Follower reads at once
)

// guardLog cuts the log whenever it is larger than limit. The engine appends (O_APPEND), so that its next line goes to
// the new end; what it writes between the copy and the cut is lost, and only that.
func guardLog(path string, limit int64, stop <-chan struct{}, log *slog.Logger) {
	if limit <= 0 {
		limit = DefaultMaxLog
	}
	tick := time.NewTicker(guardEvery)
	defer tick.Stop()
	for {
		cutLog(path, limit, log)
		select {
		case <-stop:
			cutLog(path, limit, log)
			return
		case <-tick.C:
		}
	}
}

// cutLog keeps the end of a log that is too large as PATH.1 and empties it.
func cutLog(path string, limit int64, log *slog.Logger) {
	fi, err := os.Stat(path)
	if err != nil || fi.Size() <= limit {
		return
	}
	if err := rotate(path, fi.Size(), min(keepLog, limit)); err != nil {
		log.Warn("cannot keep the end of an engine's log", "path", path, "err", err)
	}
	if err := os.Truncate(path, 0); err != nil {
		log.Error("an engine's log grows without bound", "path", path, "bytes", fi.Size(), "err", err)
	}
}

func rotate(path string, size, keep int64) error {
	in, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { _ = in.Close() }()
	if _, err := in.Seek(max(0, size-keep), io.SeekStart); err != nil {
		return err
	}
	out, err := os.OpenFile(path+".1", os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, io.LimitReader(in, keep))
	return errors.Join(err, out.Close())
}

// Tail returns the last n lines of a log from offset from on, with secrets removed. A log that was cut since is read
// from its beginning.
func Tail(path string, from int64, n int) []string {
	f, err := os.Open(path)
	if err != nil || n <= 0 {
		return nil
	}
	defer func() { _ = f.Close() }()
	fi, err := f.Stat()
	if err != nil {
		return nil
	}
	if fi.Size() < from {
		from = 0
	}
	const perLine = 512
	start := max(from, fi.Size()-int64(n)*perLine, fi.Size()-maxRead)
	b, err := io.ReadAll(io.NewSectionReader(f, start, fi.Size()-start))
	if err != nil {
		return nil
	}
	lines := strings.Split(strings.TrimRight(string(b), "\r\n\x00"), "\n")
	if start > from && len(lines) > 1 {
		lines = lines[1:] // half a line
	}
	if len(lines) > n {
		lines = lines[len(lines)-n:]
	}
	out := make([]string, 0, len(lines))
	for _, l := range lines {
		if l = Scrub(clean(l)); l != "" || len(out) > 0 {
			out = append(out, l)
		}
	}
	return out
}

// clean removes what would disturb a page or a terminal and shortens very long lines.
func clean(l string) string {
	if len(l) > maxLine {
		l = l[:maxLine] + " …"
	}
	l = ansi.ReplaceAllString(strings.ToValidUTF8(l, "\uFFFD"), "")
	return strings.Map(func(r rune) rune {
		if r == '\t' || r >= ' ' && r != 0x7f {
			return r
		}
		return -1
	}, l)
}

var (
	ansi    = regexp.MustCompile(`\x1b\[[0-9;?]*[A-Za-z]`)
	bearer  = regexp.MustCompile(`(?i)\b(bearer|basic)\s+[A-Za-z0-9._~+/=-]{6,}`)
	assign  = regexp.MustCompile(`(?i)((?:api[_-]?key|token|secret|password|authorization)["']?\s*[:=]\s*["']?)([^\s"',;]{6,})`)
	known   = regexp.MustCompile(`\b(hf_[A-Za-z0-9]{8,}|sk-[A-Za-z0-9_-]{8,}|ghp_[A-Za-z0-9]{8,}|AKIA[A-Z0-9]{12,}|` + KeyPrefix + `[a-f0-9]{16,})\b`)
	urlUser = regexp.MustCompile(`(://[^/\s:@]+:)[^/\s@]+@`)
)

// KeyPrefix begins the keys that loaders make for their engines, so that Scrub knows them.
const KeyPrefix = "llmmkey_"

// Scrub removes what looks like a secret from a line of a log.
func Scrub(l string) string {
	l = bearer.ReplaceAllString(l, "$1 "+registry.Redaction)
	l = known.ReplaceAllString(l, registry.Redaction)
	l = urlUser.ReplaceAllString(l, "${1}"+registry.Redaction+"@")
	return assign.ReplaceAllString(l, "${1}"+registry.Redaction)
}

// Follower reads the lines that are added to a log. It is not safe for concurrent use.
type Follower struct {
	path string
	at   int64
	rest []byte
}

// Follow returns a Follower of what comes after offset from.
func Follow(path string, from int64) *Follower { return &Follower{path: path, at: from} }

// Lines returns the complete lines that were added since the last call, at most 1 MiB of them; nil when there are
// none.
func (f *Follower) Lines() []string {
	file, err := os.Open(f.path)
	if err != nil {
		return nil
	}
	defer func() { _ = file.Close() }()
	fi, err := file.Stat()
	if err != nil {
		return nil
	}
	if fi.Size() < f.at { // it was cut
		f.at, f.rest = 0, nil
	}
	if fi.Size() == f.at {
		return nil
	}
	b, err := io.ReadAll(io.NewSectionReader(file, f.at, min(maxRead, fi.Size()-f.at)))
	if err != nil {
		return nil
	}
	f.at += int64(len(b))
	b = append(f.rest, b...)
	end := bytes.LastIndexByte(b, '\n')
	if end < 0 {
		f.rest = b[:min(len(b), maxLine)] // the beginning of an endless line is enough
		return nil
	}
	f.rest = bytes.Clone(b[end+1:])
	lines := strings.Split(string(b[:end]), "\n")
	for i, l := range lines {
		lines[i] = strings.TrimSuffix(l, "\r")
	}
	return lines
}

// Rest returns the beginning of a line that is not complete yet.
func (f *Follower) Rest() string { return string(f.rest) }
