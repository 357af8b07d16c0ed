package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"time"
)

// asPlain as the only argument makes this program a server that does nothing: it answers every request with what it has
// in memory, as many bytes as a page of the list has. It ends with its standard input.
const asPlain = "plain-server"

// plainSize is the size of its answer in bytes.
const plainSize = 38_000

// servePlain prints its address and serves.
func servePlain(in io.Reader, out io.Writer) error {
	listener, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	if _, err := fmt.Fprintln(out, "http://"+listener.Addr().String()); err != nil {
		return errors.Join(err, listener.Close())
	}
	answer := bytes.Repeat([]byte("0123456789"), plainSize/10)
	srv := &http.Server{ReadHeaderTimeout: 10 * time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write(answer) // who asked sees that it is too short
	})}
	go func() {
		_, _ = io.Copy(io.Discard, in)
		_ = srv.Close()
	}()
	if err := srv.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// idler is a running server that does nothing, with a client like that of the real one.
type idler struct {
	*server
	cmd  *exec.Cmd
	hold io.Closer // its standard input
}

// startPlain starts it. Stop it.
func startPlain(ctx context.Context) (*idler, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, self, asPlain)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	p := &idler{server: &server{client: newClient()}, cmd: cmd, hold: in}
	p.base, err = bufio.NewReader(out).ReadString('\n')
	p.base = strings.TrimSpace(p.base)
	if err != nil {
		return nil, errors.Join(err, p.stop())
	}
	return p, nil
}

func (p *idler) stop() error {
	p.client.CloseIdleConnections()
	return errors.Join(p.hold.Close(), p.cmd.Wait())
}
