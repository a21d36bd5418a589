package nodetest_test

import (
	"testing"

	"github.com/skerry-dev/skerry/internal/nodeapi/nodetest"
)

// TestProcesses holds the node of plain processes to the suite.
func TestProcesses(t *testing.T) { nodetest.Run(t, nodetest.Processes) }
