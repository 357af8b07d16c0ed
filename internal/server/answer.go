package server

import (
	"bytes"
	"strconv"
	"sync"

	"github.com/labstack/echo/v4"
)

// sendWhole sends a whole answer. Its length is told beforehand, so that it is not sent in chunks.
func sendWhole(c echo.Context, status int, kind string, body []byte) error {
	c.Response().Header().Set(echo.HeaderContentLength, strconv.Itoa(len(body)))
	return c.Blob(status, kind, body)
}

// bufferPool keeps the memory that answers are put together in: a page of a list has forty to two hundred kilobytes,
// and to grow a new buffer to that size for each costs as much memory again as all else that the page takes.
type bufferPool struct{ pool sync.Pool }

var buffers bufferPool

// maxKept is how large a buffer may be that is kept, in bytes: one large answer is not to hold its memory for long.
const maxKept = 1 << 20

// take returns an empty buffer. Whoever takes it gives it back when what is in it was sent.
func (p *bufferPool) take() *bytes.Buffer {
	if b, ok := p.pool.Get().(*bytes.Buffer); ok {
		b.Reset()
		return b
	}
	return new(bytes.Buffer)
}

func (p *bufferPool) giveBack(b *bytes.Buffer) {
	if b.Cap() <= maxKept {
		p.pool.Put(b)
	}
}
