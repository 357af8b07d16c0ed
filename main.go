// Command llmm is LLMModelManager: the server with its console, and the client that scripts use. See README.md.
package main

import (
	"os"

	"github.com/industriverse/llmmodelmanager/internal/cli"
)

func main() {
	os.Exit(cli.Run(os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}
