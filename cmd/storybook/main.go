// Command storybook shows every state of every page of the console with made-up data.
//
//	go run ./cmd/storybook                  serves them on 127.0.0.1:8090
//	go run ./cmd/storybook -out DIR         writes them as HTML files instead
package main

import (
	"context"
	"flag"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/industriverse/llmmodelmanager/web/templates/stories"
)

func main() {
	listen := flag.String("listen", "127.0.0.1:8090", "address to serve on")
	out := flag.String("out", "", "write HTML files into this folder and end")
	flag.Parse()
	if err := run(*listen, *out); err != nil {
		fmt.Fprintln(os.Stderr, "storybook:", err)
		os.Exit(1)
	}
}

func run(listen, out string) error {
	if out == "" {
		fmt.Printf("The stories are at http://%s/\n", listen)
		s := &http.Server{Addr: listen, Handler: stories.Handler(), ReadHeaderTimeout: 5 * time.Second}
		return s.ListenAndServe()
	}
	if err := os.MkdirAll(out, 0o755); err != nil {
		return err
	}
	for _, s := range stories.All() {
		f, err := os.Create(filepath.Join(out, s.Name+".html"))
		if err != nil {
			return err
		}
		if err := s.Page.Render(context.Background(), f); err != nil {
			_ = f.Close()
			return err
		}
		if err := f.Close(); err != nil {
			return err
		}
	}
	return nil
}
