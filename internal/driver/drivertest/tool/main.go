// Command tool is what drivertest runs in machines.
package main

import (
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Println(err)
		os.Exit(3)
	}
}

func run(args []string) error {
	op, args := args[0], args[1:]
	switch op {
	case "write": // FILE TEXT
		return os.WriteFile(args[0], []byte(args[1]), 0o644)
	case "read": // FILE
		b, err := os.ReadFile(args[0])
		fmt.Print(string(b))
		return err
	case "tally": // FILE: makes ever more files FILE1, FILE2, ... and tells their texts
		for n := 1; ; n++ {
			file, text := args[0]+strconv.Itoa(n), strconv.FormatInt(time.Now().UnixNano(), 10)
			if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
				return err
			}
			fmt.Println(file, text)
			time.Sleep(200 * time.Microsecond)
		}
	case "count": // FILE: writes ever higher numbers into it
		for n := 1; ; n++ {
			if err := os.WriteFile(args[0]+".new", []byte(strconv.Itoa(n)), 0o644); err != nil {
				return err
			}
			if err := os.Rename(args[0]+".new", args[0]); err != nil {
				return err
			}
			time.Sleep(time.Millisecond)
		}
	case "beyond": // FILE NUMBER: waits until the file has a higher number, and prints it
		least, err := strconv.Atoi(args[1])
		if err != nil {
			return err
		}
		for {
			b, err := os.ReadFile(args[0])
			n, nerr := strconv.Atoi(strings.TrimSpace(string(b)))
			if err == nil && nerr == nil && n > least {
				fmt.Print(n)
				return nil
			}
			time.Sleep(time.Millisecond)
		}
	case "exit": // CODE
		code, err := strconv.Atoi(args[0])
		if err != nil {
			return err
		}
		os.Exit(code)
	case "stop-agent": // at the end of standard input: before, the agent answers that the tool runs
		if _, err := io.Copy(io.Discard, os.Stdin); err != nil {
			return err
		}
		return syscall.Kill(os.Getppid(), syscall.SIGSTOP)
	}
	return fmt.Errorf("what is %q?", op)
}
