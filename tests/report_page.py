"""A report's page, taken apart as a browser would."""

from html.parser import HTMLParser

from unlearn_mlx.reporting.report import report_html


class Page(HTMLParser):
    """A page's tags, attributes, scripts and text, as a browser would see them."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.attributes, self.scripts, self.text = [], [], [], ""
        self.inside = None
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += [(tag, *attribute) for attribute in attributes]
        if tag in ("script", "style"):
            self.inside = tag
            if tag == "script":
                self.scripts.append((dict(attributes).get("type"), ""))

    def handle_endtag(self, tag):
        if tag == self.inside:
            self.inside = None

    def handle_data(self, data):
        if self.inside == "script":
            self.scripts[-1] = (self.scripts[-1][0], self.scripts[-1][1] + data)
        elif self.inside is None:
            self.text += data

    def values(self, name):
        return [value for _, attribute, value in self.attributes if attribute == name]


def page_of(run):
    return Page(report_html(run))
