package cli

import (
	"bufio"
	stdbytes "bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// call asks the API and decodes its answer into out (if that is not nil); the raw answer comes back too. An answer that
// is an error becomes a *registry.Error again.
func (r *remote) call(ctx context.Context, method, path string, body io.Reader, kind string, out any) ([]byte, int, error) {
	resp, err := r.send(ctx, method, path, body, kind)
	if err != nil {
		return nil, 0, err
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, 0, fmt.Errorf("read the answer of %s: %w", r.Server, err)
	}
	if out != nil && len(raw) > 0 {
		if err := json.Unmarshal(raw, out); err != nil {
			return nil, 0, fmt.Errorf("%s answered something that is not the API of llmm; is the address right?", r.Server)
		}
	}
	return raw, resp.StatusCode, nil
}

func (r *remote) send(ctx context.Context, method, path string, body io.Reader, kind string) (*http.Response, error) {
	base := strings.TrimSuffix(r.Server, "/")
	if !strings.Contains(base, "://") {
		base = "http://" + base
	}
	req, err := http.NewRequestWithContext(ctx, method, base+path, body)
	if err != nil {
		return nil, fmt.Errorf("--server %q is not an address", r.Server)
	}
	if kind != "" {
		req.Header.Set("Content-Type", kind)
	}
	if r.Token != "" {
		req.Header.Set("Authorization", "Bearer "+r.Token)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		var ue *url.Error
		if errors.As(err, &ue) {
			err = ue.Err
		}
		return nil, fmt.Errorf("no server answers at %s (%w). Start one with llmm serve, or name it with --server or LLMM_SERVER", base, err)
	}
	if resp.StatusCode < 400 {
		return resp, nil
	}
	defer resp.Body.Close()
	raw, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<20)) // what can be read of an error is enough
	var p struct {
		Code     registry.Code         `json:"code"`
		Detail   string                `json:"detail"`
		Fields   []registry.FieldError `json:"fields"`
		Failure  *registry.Failure     `json:"failure"`
		Shortage *registry.Shortage    `json:"shortage"`
	}
	if json.Unmarshal(raw, &p) != nil || p.Code == "" {
		return nil, fmt.Errorf("%s answered %s", base, resp.Status)
	}
	if p.Code == registry.CodeUnauthenticated && r.Token == "" {
		p.Detail += ". Give an API token with --token or LLMM_TOKEN; make one in the console under Account."
	}
	return nil, &registry.Error{Code: p.Code, Msg: p.Detail, Fields: p.Fields, Failure: p.Failure, Shortage: p.Shortage}
}

func (r *remote) get(e *env, path string, out any) error {
	raw, _, err := r.call(e.ctx, http.MethodGet, path, nil, "", out)
	if err == nil && r.JSON {
		_, err = e.stdout.Write(indent(raw))
	}
	return err
}

func (r *remote) post(e *env, path string, in, out any) ([]byte, int, error) {
	b, err := json.Marshal(in)
	if err != nil {
		return nil, 0, err
	}
	return r.call(e.ctx, http.MethodPost, path, stdbytes.NewReader(b), "application/json", out)
}

func indent(raw []byte) []byte {
	var b stdbytes.Buffer
	if json.Indent(&b, stdbytes.TrimSpace(raw), "", "  ") != nil {
		return raw
	}
	b.WriteByte('\n')
	return b.Bytes()
}

func table(w io.Writer, head string, rows func(*tabwriter.Writer)) error {
	t := tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
	fmt.Fprintln(t, head)
	rows(t)
	return t.Flush()
}

// bytes writes a number of bytes as everywhere in the product.
func bytes(n int64) string { return registry.Bytes(n) }

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// watch shows an operation on one line after the other until it ends, and returns how it ended.
func (r *remote) watch(e *env, op registry.Operation) (registry.Operation, error) {
	last := ""
	for {
		if line := progressLine(op); line != last && line != "" && !r.JSON {
			fmt.Fprintln(e.stderr, line)
			last = line
		}
		if op.State.Resting() {
			return op, nil
		}
		if _, _, err := r.call(e.ctx, http.MethodGet, "/api/v1/operations/"+op.ID+"?wait=500ms", nil, "", &op); err != nil {
			return op, err
		}
	}
}

func progressLine(op registry.Operation) string {
	for _, s := range op.Stages {
		if s.State != registry.StageRunning {
			continue
		}
		line := string(s.Name)
		switch {
		case s.Unit == registry.UnitPercent:
			line += fmt.Sprintf(" %d%%", s.Done)
		case s.Unit == registry.UnitBytes && s.Total > 0:
			line += fmt.Sprintf(" %s of %s", bytes(s.Done), bytes(s.Total))
		case s.Total > 0:
			line += fmt.Sprintf(" %d of %d", s.Done, s.Total)
		}
		if s.ETA > 0 {
			line += ", about " + time.Duration(s.ETA).Round(time.Second).String() + " left"
		}
		if s.Stalled {
			line += " (stalled)"
		}
		if s.Msg != "" {
			line += ": " + s.Msg
		}
		return line
	}
	return ""
}

// finish turns an ended operation into output and exit status.
func (r *remote) finish(e *env, op registry.Operation) error {
	if r.JSON {
		b, err := json.MarshalIndent(op, "", "  ")
		if err != nil {
			return err
		}
		fmt.Fprintln(e.stdout, string(b))
	}
	switch op.State {
	case registry.OperationFailed:
		return op.Error.AsError()
	case registry.OperationCancelled:
		return fmt.Errorf("cancelled: %s", op.Outcome)
	case registry.OperationSucceeded, registry.OperationQueued, registry.OperationRunning, registry.OperationPaused:
	}
	if !r.JSON {
		fmt.Fprintln(e.stdout, op.Outcome)
	}
	return nil
}

// follow copies the data of a stream of server-sent events, one line each.
func follow(body io.Reader, w io.Writer) error {
	sc := bufio.NewScanner(body)
	sc.Buffer(make([]byte, 64<<10), 4<<20)
	for sc.Scan() {
		if data, ok := strings.CutPrefix(sc.Text(), "data: "); ok {
			if _, err := fmt.Fprintln(w, data); err != nil {
				return err
			}
		}
	}
	return sc.Err()
}
