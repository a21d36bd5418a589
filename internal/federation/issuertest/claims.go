package issuertest

import (
	"crypto/rand"
	"maps"
	"strings"
	"time"
)

// Claims are the claims of a token.
type Claims map[string]any

// With returns the claims with another value of one of them. Nil removes it.
func (c Claims) With(name string, value any) Claims {
	c = maps.Clone(c)
	c[name] = value
	if value == nil {
		delete(c, name)
	}
	return c
}

// Token signs claims. It panics if they cannot be JSON.
func (i *Issuer) Token(c Claims) string {
	token, err := i.Key().Sign(c)
	if err != nil {
		panic(err)
	}
	return token
}

// Plain are the claims that every token has.
func (i *Issuer) Plain(subject string) Claims { return i.claims(subject, time.Hour, nil) }

func (i *Issuer) claims(subject string, life time.Duration, more map[string]any) Claims {
	now := i.clock()
	c := Claims{
		"iss": i.url, "aud": Audience, "sub": subject, "jti": strings.ToLower(rand.Text()),
		"iat": now.Unix(), "nbf": now.Unix(), "exp": now.Add(life).Unix(),
	}
	maps.Copy(c, more)
	return c
}

// GitHub are the claims of a job of GitHub Actions: of a repository (owner/name), a ref
// (refs/heads/main), and an environment, "" for none. All values are strings.
func (i *Issuer) GitHub(repository, ref, environment string) Claims {
	owner, _, _ := strings.Cut(repository, "/")
	workflow := repository + "/.github/workflows/ci.yml@" + ref
	c := map[string]any{
		"ref": ref, "ref_type": "branch", "ref_protected": "true", "sha": "f3c1a8d0b7e24c5f9a6d1b2c3e4f5a6b7c8d9e0f",
		"repository": repository, "repository_id": "74", "repository_visibility": "private",
		"repository_owner": owner, "repository_owner_id": "65",
		"actor": "octocat", "actor_id": "12", "event_name": "push", "head_ref": "", "base_ref": "",
		"run_id": "1234567890", "run_number": "10", "run_attempt": "1", "runner_environment": "github-hosted",
		"workflow": "CI", "workflow_ref": workflow, "workflow_sha": "f3c1a8d0b7e24c5f9a6d1b2c3e4f5a6b7c8d9e0f",
		"job_workflow_ref": workflow, "job_workflow_sha": "f3c1a8d0b7e24c5f9a6d1b2c3e4f5a6b7c8d9e0f",
	}
	subject := "repo:" + repository + ":ref:" + ref
	if environment != "" {
		c["environment"], subject = environment, "repo:"+repository+":environment:"+environment
	}
	return i.claims(subject, 5*time.Minute, c)
}

// GitLab are the claims of a GitLab job, of a project (group/name) and a branch.
// Booleans and ids are strings, except for runner_id.
func (i *Issuer) GitLab(project, branch string, protected bool) Claims {
	isProtected := "false"
	if protected {
		isProtected = "true"
	}
	namespace := project[:strings.LastIndex(project, "/")]
	return i.claims("project_path:"+project+":ref_type:branch:ref:"+branch, time.Hour, map[string]any{
		"namespace_id": "72", "namespace_path": namespace, "project_id": "20", "project_path": project, "project_visibility": "private",
		"user_id": "1", "user_login": "sample-user", "user_email": "sample-user@example.com", "user_access_level": "developer",
		"pipeline_id": "574", "pipeline_source": "push", "job_id": "302",
		"ref": branch, "ref_type": "branch", "ref_path": "refs/heads/" + branch, "ref_protected": isProtected,
		"runner_id": 1, "runner_environment": "self-hosted", "sha": "714a629c0b401fdce83e847fc9589983fc6f46bc",
		"ci_config_ref_uri": "gitlab.example.com/" + project + "//.gitlab-ci.yml@refs/heads/" + branch,
		"ci_config_sha":     "714a629c0b401fdce83e847fc9589983fc6f46bc",
	})
}

// Kubernetes are the claims of a projected token of a service account in a pod.
func (i *Issuer) Kubernetes(namespace, account string) Claims {
	return i.claims("system:serviceaccount:"+namespace+":"+account, time.Hour, map[string]any{
		"aud": []string{Audience},
		"kubernetes.io": map[string]any{
			"namespace":      namespace,
			"node":           map[string]any{"name": "node-1", "uid": "646e7c5e-32d6-4d42-9dbd-e504e6cbe6b1"},
			"pod":            map[string]any{"name": "runner-0", "uid": "5e0bd49b-f040-43b0-99b7-22765a53f7f3"},
			"serviceaccount": map[string]any{"name": account, "uid": "14ee3fa4-a7e2-420f-9f9a-dbc4507c3798"},
		},
	})
}

// Vercel are the claims of a token of a Vercel project: owner and project are pairs of
// a name and an id.
func (i *Issuer) Vercel(owner, ownerID, project, projectID, environment string) Claims {
	subject := "owner:" + owner + ":project:" + project + ":environment:" + environment
	return i.claims(subject, 12*time.Hour, map[string]any{
		"scope": subject, "owner": owner, "owner_id": ownerID, "project": project, "project_id": projectID, "environment": environment,
	})
}

// Google are the claims of an ID token of a person in a Workspace domain.
func (i *Issuer) Google(email, domain string) Claims {
	return i.claims("110169484474386276334", time.Hour, map[string]any{
		"azp": "client.apps.googleusercontent.com", "email": email, "email_verified": true, "hd": domain,
	})
}
