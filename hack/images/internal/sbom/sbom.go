// Package sbom lists what an image is made of, as SPDX 2.3.
package sbom

import (
	"bytes"
	"cmp"
	"encoding/hex"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	spdxjson "github.com/spdx/tools-golang/json"
	"github.com/spdx/tools-golang/spdx"
	"github.com/spdx/tools-golang/spdx/v2/common"
)

// MediaType of the document.
const MediaType = "application/spdx+json"

const unknown = "NOASSERTION"

// Image is what the document is about.
type Image struct {
	Name    string // with its registry
	Version string
	Digest  string // of its manifest, without "sha256:"
	Arch    string
	Created time.Time
}

// Package is a part of the image.
type Package struct {
	Name, Version string
	PURL          string
	License       string // an SPDX expression, or ""
	Supplier      string // an organization, or ""
	SHA256        string // of the archive it came in, in hexadecimal, or ""
}

// GoModule is a Go module as a package.
func GoModule(path, version string) Package {
	// Module paths and versions need no other escapes; a '+' of a version does.
	return Package{Name: path, Version: version, PURL: "pkg:golang/" + path + "@" + url.QueryEscape(version)}
}

// Document returns the bytes of the document; they depend on the arguments only.
func Document(image Image, parts []Package) ([]byte, error) {
	const root = common.ElementID("image")
	document := &spdx.Document{
		SPDXVersion: spdx.Version, DataLicense: spdx.DataLicense, SPDXIdentifier: "DOCUMENT",
		DocumentName:      image.Name + ":" + image.Version + " linux/" + image.Arch,
		DocumentNamespace: "https://lambdamesh.dev/spdx/" + image.Name + "@sha256:" + image.Digest,
		CreationInfo: &spdx.CreationInfo{
			Created:  image.Created.UTC().Format(time.RFC3339),
			Creators: []common.Creator{{CreatorType: "Tool", Creator: "lambdamesh-images"}},
		},
		Packages: []*spdx.Package{{
			PackageName: image.Name, PackageSPDXIdentifier: root, PackageVersion: image.Version,
			PackageDownloadLocation: unknown, PrimaryPackagePurpose: "CONTAINER",
			PackageLicenseConcluded: unknown, PackageLicenseDeclared: unknown, PackageCopyrightText: unknown,
			PackageChecksums: []common.Checksum{{Algorithm: common.SHA256, Value: image.Digest}},
			PackageExternalReferences: purl("pkg:oci/" + image.Name[strings.LastIndex(image.Name, "/")+1:] +
				"@sha256:" + image.Digest + "?arch=" + image.Arch),
		}},
		Relationships: []*spdx.Relationship{relation("DOCUMENT", common.TypeRelationshipDescribe, root)},
	}
	parts = slices.Clone(parts)
	slices.SortFunc(parts, func(a, b Package) int { return strings.Compare(a.PURL, b.PURL) })
	for _, part := range slices.Compact(parts) {
		id := common.ElementID("Package-" + hex.EncodeToString([]byte(part.PURL)))
		listed := &spdx.Package{
			PackageName: part.Name, PackageSPDXIdentifier: id, PackageVersion: part.Version,
			PackageDownloadLocation: unknown, PackageCopyrightText: unknown,
			PackageLicenseConcluded: unknown, PackageLicenseDeclared: cmp.Or(part.License, unknown),
			PackageExternalReferences: purl(part.PURL),
		}
		if part.Supplier != "" {
			listed.PackageSupplier = &common.Supplier{SupplierType: "Organization", Supplier: part.Supplier}
		}
		if part.SHA256 != "" {
			listed.PackageChecksums = []common.Checksum{{Algorithm: common.SHA256, Value: part.SHA256}}
		}
		document.Packages = append(document.Packages, listed)
		document.Relationships = append(document.Relationships, relation(root, common.TypeRelationshipContains, id))
	}
	var out bytes.Buffer
	if err := spdxjson.Write(document, &out, spdxjson.EscapeHTML(false)); err != nil {
		return nil, fmt.Errorf("write the SBOM of %s: %w", image.Name, err)
	}
	return out.Bytes(), nil
}

func purl(locator string) []*spdx.PackageExternalReference {
	return []*spdx.PackageExternalReference{{
		Category: common.CategoryPackageManager, RefType: common.TypePackageManagerPURL, Locator: locator,
	}}
}

func relation(from common.ElementID, kind string, to common.ElementID) *spdx.Relationship {
	return &spdx.Relationship{
		RefA: common.DocElementID{ElementRefID: from}, Relationship: kind, RefB: common.DocElementID{ElementRefID: to},
	}
}
