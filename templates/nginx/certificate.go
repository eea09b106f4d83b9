package nginx

import "berth/templates/certificate"

// Certificate is a certificate that nginx serves.
type Certificate struct {
	File, Key string
	Names     []string // none of them in another; the first certificate's may be none
}

// Certificates returns the certificates that nginx serves of these files. The first is for clients that ask for another
// host. It reports a file whose hosts are not known.
func Certificates(files []certificate.File, report func(string)) []Certificate {
	var all []Certificate
	taken := map[string]bool{}
	for _, c := range files {
		var free []string
		for _, name := range c.Names {
			if !taken[name] {
				taken[name] = true
				free = append(free, name)
			}
		}
		if len(free) == 0 && len(all) > 0 {
			if !c.Readable {
				report(certificate.Problem(c.Path, "berth may not read it and so does not know its hosts; make it readable for berth, and put its key into a file of its own"))
			}
			continue
		}
		all = append(all, Certificate{c.Path, c.Key, free})
	}
	return all
}
