package cli

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"
)

func (a *app) manCommand() *cobra.Command {
	var dir string
	c := &cobra.Command{
		Use:   "man [COMMAND...]",
		Short: "Print a manual page, or write them all to a folder",
		Long: "Prints the manual page of a command, or of myelin itself: myelin man guard | man -l -\n" +
			"With --dir it writes the pages of all commands: myelin man --dir /usr/local/share/man/man1\n" +
			"They are dated with SOURCE_DATE_EPOCH where it is set, so that a package can be built again to the byte.",
		RunE: func(c *cobra.Command, args []string) error {
			if dir != "" && len(args) > 0 {
				return usage("--dir writes the pages of all commands; leave out %q", strings.Join(args, " "))
			}
			root := c.Root()
			root.DisableAutoGenTag = true
			header := &doc.GenManHeader{Section: "1", Source: "myelin " + buildVersion(), Manual: "Myelin"}
			if dir != "" {
				return a.writePages(root, header, dir)
			}
			about, rest, err := root.Find(args)
			if err != nil || len(rest) > 0 {
				return usage("there is no command %q; see myelin --help", strings.Join(args, " "))
			}
			return doc.GenMan(about, header, a.out)
		},
	}
	c.Flags().StringVar(&dir, "dir", "", "`FOLDER` to write the pages of all commands to; it is made when it is missing")
	return c
}

func (a *app) writePages(root *cobra.Command, header *doc.GenManHeader, dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("make the folder of the manual pages: %w", err)
	}
	if err := doc.GenManTree(root, header, dir); err != nil {
		return fmt.Errorf("write the manual pages: %w", err)
	}
	pages, err := filepath.Glob(filepath.Join(dir, "myelin*.1"))
	if err != nil {
		return err
	}
	fmt.Fprintf(a.out, "%d pages in %s\n", len(pages), dir)
	return nil
}
