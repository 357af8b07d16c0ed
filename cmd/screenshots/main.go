// Command screenshots takes pictures of every story of the console in a headless Chromium, wide and narrow, dark and
// light, into ./screenshots, and says what is measurably wrong: pages that scroll sideways at 360 px, text with too
// little contrast (WCAG AA), words that a narrow column breaks into letters, touch targets that are too small on a phone,
// errors in the browser's console.
//
//	go run ./cmd/screenshots [-only model,overview] [-check]
package main

import (
	"context"
	_ "embed"
	"flag"
	"fmt"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/log"
	cdpruntime "github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"

	"github.com/industriverse/llmmodelmanager/web/templates/stories"
)

//go:embed audit.js
var audit string

type shape struct {
	width, height int64
	theme         string
	phone         bool
}

func main() {
	only := flag.String("only", "", "stories whose names begin with one of these, separated by commas")
	check := flag.Bool("check", false, "measure only, take no pictures")
	out := flag.String("out", "screenshots", "folder for the pictures")
	flag.Parse()
	bad, err := run(*out, *only, *check)
	if err != nil {
		fmt.Fprintln(os.Stderr, "screenshots:", err)
		os.Exit(1)
	}
	if bad > 0 {
		fmt.Fprintf(os.Stderr, "%d things to mend\n", bad)
		os.Exit(1)
	}
}

func run(out, only string, check bool) (int, error) {
	if err := os.MkdirAll(out, 0o755); err != nil {
		return 0, err
	}
	server := httptest.NewServer(stories.Handler())
	defer server.Close()
	defer server.CloseClientConnections() // event streams are open

	opts := append(slices.Clone(chromedp.DefaultExecAllocatorOptions[:]),
		chromedp.NoSandbox, chromedp.DisableGPU, chromedp.Flag("disable-background-networking", true), chromedp.Flag("disable-component-update", true),
		chromedp.Flag("disable-sync", true), chromedp.Flag("force-color-profile", "srgb"))
	alloc, stop := chromedp.NewExecAllocator(context.Background(), opts...)
	defer stop()
	browser, stop := chromedp.NewContext(alloc)
	defer stop()
	browser, stop = context.WithTimeout(browser, 5*time.Minute)
	defer stop()

	var mu sync.Mutex
	var complaints []string
	complain := func(format string, args ...any) {
		mu.Lock()
		defer mu.Unlock()
		complaints = append(complaints, fmt.Sprintf(format, args...))
	}
	if err := chromedp.Listen(browser, func(ev any) {
		switch ev := ev.(type) {
		case *cdpruntime.EventExceptionThrown:
			complain("exception: %s", ev.ExceptionDetails.Text)
		case *log.EventEntryAdded:
			// Among these are what the Content-Security-Policy refused and files that are missing.
			if ev.Entry.Level == log.EntryLevelError {
				complain("browser: %s", ev.Entry.Text)
			}
		}
	}); err != nil {
		return 0, err
	}

	shapes := []shape{{1280, 860, "light", false}, {390, 844, "light", true}, {1280, 860, "dark", false}, {390, 844, "dark", true}, {360, 640, "light", true}}
	bad := 0
	for _, sh := range shapes {
		for _, s := range stories.All() {
			if !wanted(s.Name, only) {
				continue
			}
			found, png, err := look(browser, server.URL+"/s/"+s.Name, sh, !check && sh.width != 360)
			if err != nil {
				return bad, fmt.Errorf("%s at %d: %w", s.Name, sh.width, err)
			}
			mu.Lock()
			found = append(found, complaints...)
			complaints = nil
			mu.Unlock()
			for _, f := range found {
				bad++
				fmt.Printf("%s %d %s: %s\n", s.Name, sh.width, sh.theme, f)
			}
			if png == nil {
				continue
			}
			if err := os.WriteFile(filepath.Join(out, fmt.Sprintf("%s-%s-%d.png", s.Name, sh.theme, sh.width)), png, 0o644); err != nil {
				return bad, err
			}
		}
	}
	return bad, nil
}

// look opens one page in one shape, measures it, and takes a picture of all of it if that is wanted.
func look(ctx context.Context, url string, sh shape, picture bool) (found []string, png []byte, err error) {
	resize := func(height int64) error {
		_, err := chromedp.Call(ctx, emulation.SetDeviceMetricsOverride, emulation.SetDeviceMetricsOverrideParams{Width: sh.width, Height: height, DeviceScaleFactor: 1, Mobile: sh.phone})
		return err
	}
	if err := resize(sh.height); err != nil {
		return nil, nil, err
	}
	if _, err := chromedp.Call(ctx, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: sh.theme}, {Name: "prefers-reduced-motion", Value: "reduce"}}}); err != nil {
		return nil, nil, err
	}
	if err := chromedp.Do(ctx, chromedp.Navigate(url)); err != nil {
		return nil, nil, err
	}
	if found, err = chromedp.Run(ctx, chromedp.Evaluate[[]string](audit)); err != nil || !picture {
		return found, nil, err
	}
	all, err := chromedp.Run(ctx, chromedp.Evaluate[int64]("document.documentElement.scrollHeight"))
	if err != nil {
		return found, nil, err
	}
	if err := resize(max(all, sh.height)); err != nil {
		return found, nil, err
	}
	png, err = chromedp.Run(ctx, chromedp.CaptureScreenshot())
	return found, png, err
}

func wanted(name, only string) bool {
	if only == "" {
		return true
	}
	return slices.ContainsFunc(strings.Split(only, ","), func(p string) bool { return strings.HasPrefix(name, p) })
}
