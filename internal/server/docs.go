package server

import (
	_ "embed"
	"net/http"

	"github.com/labstack/echo/v4"
)

//go:embed openapi.yaml
var openAPIDocument []byte

// openapi is GET /openapi.yaml: the description of the API, an OpenAPI 3.1 document.
func (s *Server) openapi(c echo.Context) error {
	return c.Blob(http.StatusOK, "application/yaml; charset=utf-8", openAPIDocument)
}

// docs is GET /docs: the same description as a page.
func (s *Server) docs(c echo.Context) error {
	return c.Blob(http.StatusOK, "text/plain; charset=utf-8", openAPIDocument)
}
