package cli

import "github.com/spf13/cobra"

func (a *app) registrarCommand() *cobra.Command { return &cobra.Command{Use: "registrar"} }
