package clienttest

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/skerry-dev/skerry"
)

// A drive of this server has a name and a size, and nothing in it.

func (s *Server) findDrive(w http.ResponseWriter, r *http.Request) *skerry.Drive {
	for _, d := range s.drives {
		if d.Name == r.PathValue("drive") {
			return d
		}
	}
	if w != nil {
		Refuse(w, http.StatusNotFound, skerry.CodeNotFound, "there is no drive named "+strconv.Quote(r.PathValue("drive")))
	}
	return nil
}

// AttachDrive has a sandbox seem to write to a drive.
func (s *Server) AttachDrive(drive, sandbox string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, d := range s.drives {
		if d.Name == drive {
			d.CurrentSandboxName, d.CurrentSessionID = sandbox, s.sandboxes[sandbox].CurrentSessionID
		}
	}
}

func (s *Server) createDrive(w http.ResponseWriter, r *http.Request) {
	var body struct {
		MaxSizeBytes int64 `json:"maxSizeBytes"`
	}
	if err := json.NewDecoder(r.Body).Decode(&body); err != nil {
		Refuse(w, http.StatusBadRequest, skerry.CodeBadRequest, err.Error())
		return
	}
	if body.MaxSizeBytes == 0 {
		body.MaxSizeBytes = skerry.DefaultDriveSize
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	d := s.findDrive(nil, r)
	if d == nil {
		d = s.addDrive(r.PathValue("drive"), body.MaxSizeBytes)
	}
	answer(w, map[string]any{"drive": d})
}

func (s *Server) addDrive(name string, size int64) *skerry.Drive {
	created := skerry.At(Epoch.Add(time.Duration(len(s.drives)) * time.Minute))
	d := &skerry.Drive{
		ID: fmt.Sprintf("drv_%024d", len(s.drives)+1), Name: name, ProjectID: "prj_1", Region: skerry.Region,
		MaxSizeBytes: size, CreatedAt: created, UpdatedAt: created,
	}
	s.drives = append(s.drives, d)
	return d
}

func (s *Server) forkDrive(w http.ResponseWriter, r *http.Request) {
	var body struct{ Name string }
	if err := json.NewDecoder(r.Body).Decode(&body); err != nil {
		Refuse(w, http.StatusBadRequest, skerry.CodeBadRequest, err.Error())
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	source := s.findDrive(w, r)
	if source == nil {
		return
	}
	for _, d := range s.drives {
		if d.Name == body.Name {
			Refuse(w, http.StatusConflict, skerry.CodeConflict, "a drive of that name exists")
			return
		}
	}
	d := s.addDrive(body.Name, source.MaxSizeBytes)
	d.ParentDriveID, d.RootDriveID = source.ID, source.ID
	answer(w, map[string]any{"drive": d})
}

func (s *Server) getDrive(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if d := s.findDrive(w, r); d != nil {
		answer(w, map[string]any{"drive": d})
	}
}

func (s *Server) deleteDrive(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	d := s.findDrive(w, r)
	if d == nil {
		return
	}
	if d.CurrentSandboxName != "" {
		Refuse(w, http.StatusConflict, skerry.CodeConflict, fmt.Sprintf("drive %q is attached to sandbox %q", d.Name, d.CurrentSandboxName))
		return
	}
	s.drives = slices.DeleteFunc(s.drives, func(other *skerry.Drive) bool { return other == d })
	answer(w, map[string]any{"drive": d})
}

func (s *Server) listDrives(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	q := r.URL.Query()
	list := slices.DeleteFunc(slices.Clone(s.drives), func(d *skerry.Drive) bool { return !strings.HasPrefix(d.Name, q.Get("namePrefix")) })
	slices.SortFunc(list, func(a, b *skerry.Drive) int {
		order := a.CreatedAt.Compare(b.CreatedAt.Time)
		if q.Get("sortBy") == "name" {
			order = strings.Compare(a.Name, b.Name)
		}
		if q.Get("sortOrder") != "asc" {
			order = -order
		}
		return order
	})
	from, _ := strconv.Atoi(q.Get("cursor"))
	limit := skerry.DefaultPageSize
	if n, err := strconv.Atoi(q.Get("limit")); err == nil {
		limit = n
	}
	page, next := list[min(from, len(list)):], any(nil)
	if len(page) > limit {
		page, next = page[:limit], strconv.Itoa(from+limit)
	}
	if page == nil {
		page = []*skerry.Drive{}
	}
	answer(w, map[string]any{"drives": page, "pagination": map[string]any{"count": len(page), "next": next}})
}
