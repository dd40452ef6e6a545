package main

import (
	"cmp"
	"fmt"
	"html"
	"math"
	"strings"
)

// Geometry of the plot, in pixels.
const (
	plotLeft  = 330 // where bars begin: titles are left of it
	plotWidth = 560
	plotRight = 70 // for the number behind the longest bar
	barHeight = 11
	rowGap    = 12
	plotTop   = 70
)

// colors are by system, dark enough for white and light enough for black paper.
var colors = map[string]string{
	"native": "#888888", "ring3": "#d1495b", "interp": "#8e5ea2", "tcg": "#3a7ca5", "gvisor": "#5b9e5f", "uml": "#c58b2a",
}

// plot draws, for each row, one bar per system: how many times its time is that
// of the row's base, on a logarithmic scale.
func (r *results) plot() string {
	type bar struct {
		system column
		ratio  float64
	}
	type group struct {
		title string
		bars  []bar
	}
	var groups []group
	lo, hi := 0.0, 1.0 // decades
	for _, name := range r.rows {
		row := rowByName(name)
		g := group{title: row.title}
		if row.base != "native" {
			g.title, _, _ = strings.Cut(row.title, ":")
			g.title = fmt.Sprintf("%s (%s), to %s", g.title, name, systemByName(row.base).title)
		}
		for _, s := range r.systems {
			q := median(r.ratios(s.name, row.base, name))
			if s.name == row.base || s.name == "native" || math.IsNaN(q) {
				continue
			}
			g.bars = append(g.bars, bar{s, q})
			lo, hi = min(lo, math.Floor(math.Log10(q))), max(hi, math.Ceil(math.Log10(q)))
		}
		if len(g.bars) > 0 {
			groups = append(groups, g)
		}
	}
	x := func(ratio float64) float64 { return plotLeft + plotWidth*(math.Log10(ratio)-lo)/(hi-lo) }
	var b strings.Builder
	y := plotTop
	for _, g := range groups {
		fmt.Fprintf(&b, `<text x="%d" y="%d" text-anchor="end">%s</text>`+"\n",
			plotLeft-10, y+len(g.bars)*barHeight/2+4, html.EscapeString(g.title))
		for _, bar := range g.bars {
			from, to := x(1), x(bar.ratio)
			fmt.Fprintf(&b, `<rect x="%.1f" y="%d" width="%.1f" height="%d" fill="%s"/>`+"\n",
				min(from, to), y, max(math.Abs(to-from), 1), barHeight-1, cmp.Or(colors[bar.system.name], "#555555"))
			fmt.Fprintf(&b, `<text class="n" x="%.1f" y="%d">%s</text>`+"\n", max(from, to)+4, y+barHeight-2, digits(bar.ratio))
			y += barHeight
		}
		y += rowGap
	}
	var head strings.Builder
	width, height := plotLeft+plotWidth+plotRight, y+20
	fmt.Fprintf(&head, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %d %d">
<style>text{font:12px sans-serif;fill:#222}.n{font-size:10px;fill:#555}.t{font-size:15px;font-weight:bold}</style>
<rect width="100%%" height="100%%" fill="#fff"/>
<text class="t" x="12" y="24">Time relative to native, logarithmic; shorter is better</text>
`, width, height, width, height)
	at := plotLeft
	for _, s := range r.systems {
		if s.name == "native" {
			continue
		}
		fmt.Fprintf(&head, `<rect x="%d" y="38" width="12" height="12" fill="%s"/><text x="%d" y="48">%s</text>`+"\n",
			at, cmp.Or(colors[s.name], "#555555"), at+17, html.EscapeString(s.title))
		at += 45 + 8*len(s.title)
	}
	for d := lo; d <= hi; d++ {
		at := x(math.Pow(10, d))
		color := "#ddd"
		if d == 0 {
			color = "#222"
		}
		fmt.Fprintf(&head, `<line x1="%.1f" y1="%d" x2="%.1f" y2="%d" stroke="%s"/><text class="n" x="%.1f" y="%d" text-anchor="middle">%g</text>`+"\n",
			at, plotTop-6, at, y, color, at, y+12, math.Pow(10, d))
	}
	return head.String() + b.String() + "</svg>\n"
}
