package controller

import (
	"context"

	"github.com/skerry-dev/skerry"
)

// maxSiblings is how many siblings a node of the tree shows.
const maxSiblings = 10

// SnapshotTree implements api.Service: the ancestors of a snapshot, the parent
// first, or (ascending) its descendants along the newest child of each. next
// is the snapshot from which the walk continues, "" at its end.
func (s *snapshots) SnapshotTree(ctx context.Context, scope skerry.Scope, id string, p skerry.Page) (anchor *skerry.SnapshotNode, nodes []skerry.SnapshotNode, next string, err error) {
	snap, err := s.store.Snapshot(ctx, scope, id)
	if err != nil {
		return nil, nil, "", err
	}
	if anchor, err = s.treeNode(ctx, snap); err != nil {
		return nil, nil, "", err
	}
	nodes = []skerry.SnapshotNode{}
	for at := snap; ; {
		if at, err = s.treeStep(ctx, at, p.Ascending); err != nil || at == nil {
			return anchor, nodes, "", err
		}
		if len(nodes) == p.Size() {
			return anchor, nodes, nodes[len(nodes)-1].Snapshot.ID, nil
		}
		node, err := s.treeNode(ctx, at)
		if err != nil {
			return nil, nil, "", err
		}
		nodes = append(nodes, *node)
	}
}

// treeStep returns the parent or the newest child, nil if there is none.
func (s *snapshots) treeStep(ctx context.Context, at *skerry.Snapshot, down bool) (*skerry.Snapshot, error) {
	if down {
		children, _, err := s.store.SnapshotChildren(ctx, at.Scope, at.ID, 1)
		if err != nil || len(children) == 0 {
			return nil, err
		}
		return &children[0], nil
	}
	if at.ParentID == "" {
		return nil, nil
	}
	parent, err := s.store.Snapshot(ctx, at.Scope, at.ParentID)
	if skerry.CodeOf(err) == skerry.CodeNotFound {
		return nil, nil // forgotten
	}
	return parent, err
}

func (s *snapshots) treeNode(ctx context.Context, snap *skerry.Snapshot) (*skerry.SnapshotNode, error) {
	node := &skerry.SnapshotNode{Snapshot: *snap, Siblings: []skerry.Snapshot{}, Count: 1}
	if snap.ParentID == "" {
		return node, nil
	}
	children, count, err := s.store.SnapshotChildren(ctx, snap.Scope, snap.ParentID, maxSiblings+1)
	if err != nil {
		return nil, err
	}
	for _, child := range children {
		if child.ID != snap.ID && len(node.Siblings) < maxSiblings {
			node.Siblings = append(node.Siblings, child)
		}
	}
	node.Count = count
	return node, nil
}
