package kube

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"
)

// Claim is what we read of a PersistentVolumeClaim.
type Claim struct {
	Metadata ObjectMeta `json:"metadata"`
	Spec     struct {
		StorageClassName string   `json:"storageClassName"`
		VolumeName       string   `json:"volumeName"`
		VolumeMode       string   `json:"volumeMode"`
		AccessModes      []string `json:"accessModes"`
		Resources        struct {
			Requests map[string]string `json:"requests"`
		} `json:"resources"`
	} `json:"spec"`
}

// Volume is what we read and write of a PersistentVolume.
type Volume struct {
	APIVersion string       `json:"apiVersion,omitempty"`
	Kind       string       `json:"kind,omitempty"`
	Metadata   ObjectMeta   `json:"metadata"`
	Spec       VolumeSpec   `json:"spec"`
	Status     VolumeStatus `json:"status,omitzero"`
}

// ObjectMeta is what we read and write of an object's metadata.
type ObjectMeta struct {
	Name        string            `json:"name"`
	Namespace   string            `json:"namespace,omitempty"`
	UID         string            `json:"uid,omitempty"`
	Annotations map[string]string `json:"annotations,omitempty"`
	Labels      map[string]string `json:"labels,omitempty"`
}

// VolumeSpec is that of a folder on one node.
type VolumeSpec struct {
	Capacity         map[string]string `json:"capacity"`
	AccessModes      []string          `json:"accessModes"`
	VolumeMode       string            `json:"volumeMode,omitempty"`
	StorageClassName string            `json:"storageClassName"`
	ReclaimPolicy    string            `json:"persistentVolumeReclaimPolicy"`
	ClaimRef         map[string]string `json:"claimRef,omitempty"`
	Local            struct {
		Path string `json:"path"`
	} `json:"local,omitzero"`
	NodeAffinity any `json:"nodeAffinity,omitempty"`
}

// VolumeStatus says where in its life a volume is.
type VolumeStatus struct {
	Phase string `json:"phase"`
}

// EachClaim calls back with all claims, now and after each change of one, as
// EachChange does with nodes.
func (c *Client) EachClaim(ctx context.Context, changed func([]Claim)) {
	each(ctx, c, "/api/v1/persistentvolumeclaims", changed)
}

// EachVolume does the same with volumes.
func (c *Client) EachVolume(ctx context.Context, changed func([]Volume)) {
	each(ctx, c, "/api/v1/persistentvolumes", changed)
}

// CreateVolume makes a volume; that it is there already is no error.
func (c *Client) CreateVolume(ctx context.Context, volume Volume) error {
	volume.APIVersion, volume.Kind = "v1", "PersistentVolume"
	data, err := json.Marshal(volume)
	if err != nil {
		return err
	}
	return c.change(ctx, http.MethodPost, "/api/v1/persistentvolumes", data, http.StatusCreated, http.StatusConflict)
}

// DeleteVolume deletes one; that it is gone already is no error.
func (c *Client) DeleteVolume(ctx context.Context, name string) error {
	return c.change(ctx, http.MethodDelete, "/api/v1/persistentvolumes/"+url.PathEscape(name), nil,
		http.StatusOK, http.StatusAccepted, http.StatusNotFound)
}

func (c *Client) change(ctx context.Context, method, path string, body []byte, fine ...int) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, method, c.server+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	request.Header.Set("Content-Type", "application/json")
	response, err := c.http.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	for _, status := range fine {
		if response.StatusCode == status {
			return nil
		}
	}
	text, _ := io.ReadAll(io.LimitReader(response.Body, 1<<10))
	return fmt.Errorf("%s %s: %s: %s", method, path, response.Status, bytes.TrimSpace(text))
}
