package cli

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	lambdacontroller "github.com/lambdamesh/lambdamesh/lambdas/controller"
	"github.com/lambdamesh/lambdamesh/lambdas/project"
	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
)

// deployOwner is the field manager of what deploy applies.
const deployOwner = "lambdamesh-deploy"

const deployPoll = 100 * time.Millisecond

// deployed is what deploy prints.
type deployed struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	Address   string `json:"address"`
	Message   string `json:"message,omitempty"`
}

func newLambdaDeployCommand(g *globals) *cobra.Command {
	var out output
	var namespace string
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "deploy DIR",
		Short: "Run a lambda's directory in a mesh, and wait until it does",
		Long: `deploy writes the files of the directory into the Lambda of its lambda.yaml and
applies that file's objects. The version before serves until the new one is ready,
and goes on when that does not build or start.`,
		Example: `  lambdamesh lambda deploy greet
  lambdamesh lambda deploy greet -n shop --context production`,
		Args: exactArgs("DIR"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := out.validate(); err != nil {
				return err
			}
			p, err := project.Read(args[0])
			if err != nil {
				return err
			}
			t := g.target()
			c, err := t.client()
			if err != nil {
				return err
			}
			if namespace == "" {
				namespace = p.Lambda.Namespace
			}
			if namespace, err = t.namespace(namespace); err != nil {
				return err
			}
			for _, u := range p.Objects {
				if namespaced, err := c.IsObjectNamespaced(u); err == nil && namespaced {
					u.SetNamespace(namespace)
				}
				err := c.Apply(cmd.Context(), client.ApplyConfigurationFromUnstructured(u), client.FieldOwner(deployOwner), client.ForceOwnership)
				if err != nil {
					return fmt.Errorf("apply %s %s/%s: %w", u.GetKind(), namespace, u.GetName(), err)
				}
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), timeout)
			defer cancel()
			result, err := awaitDeployed(ctx, c, types.NamespacedName{Namespace: namespace, Name: p.Lambda.Name})
			if err != nil {
				return err
			}
			return out.print(cmd.OutOrStdout(), result, []string{"NAMESPACE", "NAME", "ADDRESS", "MESSAGE"}, [][]string{{result.Namespace, result.Name, result.Address, firstLine(result.Message)}})
		},
	}
	cmd.Flags().StringVarP(&namespace, "namespace", "n", "", "`namespace` to run it in (default: lambda.yaml's, else the context's)")
	cmd.Flags().DurationVar(&timeout, "timeout", 2*time.Minute, "how long to wait for it")
	out.register(cmd)
	return cmd
}

// awaitDeployed waits until this generation of the lambda runs, or cannot.
func awaitDeployed(ctx context.Context, c client.Client, key types.NamespacedName) (deployed, error) {
	last := "no controller has looked at it"
	for {
		lambda := &v1alpha1.Lambda{}
		if err := c.Get(ctx, key, lambda); err != nil && ctx.Err() == nil {
			return deployed{}, fmt.Errorf("look at lambda %s: %w", key, err)
		}
		condition := func(name string) metav1.Condition {
			found := meta.FindStatusCondition(lambda.Status.CommonStatus.Conditions, name)
			if found == nil || found.ObservedGeneration != lambda.Generation {
				return metav1.Condition{Status: metav1.ConditionUnknown}
			}
			return *found
		}
		source, runs := condition(v1alpha1.ConditionSourceReady), condition(v1alpha1.ConditionDeployed)
		switch {
		case source.Status == metav1.ConditionFalse:
			return deployed{}, fmt.Errorf("lambda %s: %s: %s", key, source.Reason, source.Message)
		case source.Status == metav1.ConditionTrue && runs.Status == metav1.ConditionTrue:
			return deployed{Namespace: key.Namespace, Name: key.Name, Address: lambda.Status.Address, Message: runs.Message}, nil
		case runs.Status == metav1.ConditionFalse && !passes(runs.Reason):
			return deployed{}, fmt.Errorf("lambda %s: %s: %s; a version before goes on running", key, runs.Reason, runs.Message)
		case runs.Message != "":
			last = runs.Message
		case source.Message != "":
			last = source.Message
		}
		select {
		case <-ctx.Done():
			return deployed{}, fmt.Errorf("lambda %s is not ready: %s; see `lambdamesh status -n %s`", key, last, key.Namespace)
		case <-time.After(deployPoll):
		}
	}
}

// passes tells whether to wait on with this reason of Deployed=False.
func passes(reason string) bool {
	switch reason {
	case lambdacontroller.ReasonProgressing, lambdacontroller.ReasonSourceFailed, v1alpha1.ReasonPending, "Unready", "StartFailed":
		return true
	}
	return false
}
