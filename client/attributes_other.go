//go:build !linux

package client

import (
	"errors"
	"os"
)

// attributes returns nothing, because a sandbox has the attributes of Linux.
func attributes(*os.File) (records map[string]string, left []string) { return nil, nil }

func setAttribute(*os.File, string, string) error { return errors.ErrUnsupported }
