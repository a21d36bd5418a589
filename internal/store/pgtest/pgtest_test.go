package pgtest

import (
	"os"
	"testing"
)

func TestServer(t *testing.T) {
	s, err := Start()
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := s.Create("one"); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Query("one", "CREATE TABLE a (b INT); INSERT INTO a VALUES (7)"); err != nil {
		t.Fatal(err)
	}
	for _, end := range []func() error{s.Stop, s.Kill} {
		if err := end(); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Query("one", "SELECT 1"); err == nil {
			t.Error("a server that was ended answers")
		}
		if err := s.Start(); err != nil {
			t.Fatal(err)
		}
		if got, err := s.Query("one", "SELECT b FROM a"); err != nil || got != "7" {
			t.Errorf("after the start: %q, %v", got, err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(s.Dir()); !os.IsNotExist(err) {
		t.Errorf("its folder is left: %v", err)
	}
}
